"""Measures the search on real weights: how soon TPE finds the best of a grid, and what the store saves.

    python scripts/search_figures.py grid    # TPE against all 48 points, several seeds
    python scripts/search_figures.py cache   # a pass-by-pass search with the store, and with --no-cache

The grid minimises the size of all-MiniLM-L6-v2 in int8 at a bar for the cosine of its outputs to PyTorch's on the engine's
probe inputs. Both are the same in every run, so that no noise decides. A seed has found the best where it meets the goal and
its size is within 1 % of the smallest that meets it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GRID = {
    "quantize.op_types_to_quantize": [["MatMul"], ["MatMul", "Gather"]],
    "quantize.nodes_to_exclude": [
        ["*/layer.0/output/dense/*"],
        ["*/layer.[012]/output/dense/*"],
        ["*/output/dense/*"],
    ],
    "quantize.per_channel": [True, False],
    "quantize.reduce_range": [True, False],
    "quantize.weight_type": ["QInt8", "QUInt8"],
}
RECIPE, GOAL, SAMPLES, CLOSE = "all-minilm-l6-v2/cpu-int8-dynamic", "parity >= 0.985", 16, 1.01
STEPS = {"rtn.bits": [8, 4], "build.accuracy_level": [4, 0, 1], "build.search": [{"max_length": 512}, {"max_length": 1024}]}
CHAIN = "smollm2-135m-instruct/cpu-int4"


def search(recipe: str, space: dict[str, list[Any]], output: Path, *options: str) -> tuple[dict[str, Any], float]:
    """Returns the record of a search, and the seconds that it took."""
    axes = [f"--space=passes.{name}={json.dumps({'choices': values})}" for name, values in space.items()]
    command = [sys.executable, "-m", "runner", "search", recipe, *axes, "--output-dir", str(output), "--json", *options]
    began = time.perf_counter()
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 4):
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found, seconds


def meets(trial: dict[str, Any]) -> bool:
    """Returns whether a point was made and meets the goal."""
    return bool(trial["figures"]) and not trial["missed"]


def best_size(trials: list[dict[str, Any]]) -> float:
    """Returns the bytes of the smallest model that meets the goal."""
    return min((one["figures"]["size"]["value"] for one in trials if meets(one)), default=float("inf"))


def grid(folder: Path, seeds: int) -> None:
    """Prints how many points TPE and random sampling need for the best of the grid."""
    aims = ("--goal", GOAL, "--minimize", "size")
    whole, seconds = search(RECIPE, GRID, folder / "grid", *aims, "--sampler", "sequential")
    best = best_size(whole["trials"])
    met = [one for one in whole["trials"] if meets(one)]
    close = [one for one in met if one["figures"]["size"]["value"] <= best * CLOSE]
    tried = len(whole["trials"])
    print(f"grid: {tried} points in {seconds:.0f} s; {len(met)} reach {GOAL}, {len(close)} within 1 % of the best")
    print(f"best: {best / 1e6:.2f} MB")
    print("sampler  seed  points until the best  best of 16, MB")
    for sampler in ("tpe", "random"):
        for seed in range(seeds):
            chosen = ("--sampler", sampler, "--seed", str(seed), "--samples", str(SAMPLES))
            found, _ = search(RECIPE, GRID, folder / f"{sampler}-{seed}", *aims, *chosen)
            sizes = [best_size([one]) for one in found["trials"]]
            needed = next((at + 1 for at, size in enumerate(sizes) if size <= best * CLOSE), None)
            print(f"{sampler:<8} {seed:>4}  {needed or 'not found':>21}  {min(sizes) / 1e6:>14.2f}", flush=True)


def cache(folder: Path, samples: int) -> None:
    """Prints what the store saves of a pass-by-pass search."""
    # a goal of its own, since the recipe's gates would have every point benchmarked
    aims = ("--goal", "parity >= 0.9", "--minimize", "size", "--order", "pass-by-pass", "--sampler", "sequential")
    rows = []
    for name, options in (("store", ()), ("--no-cache", ("--no-cache",))):
        found, seconds = search(CHAIN, STEPS, folder / name.strip("-"), *aims, "--samples", str(samples), *options)
        rows.append((name, len(found["trials"]), seconds))
        print(f"{name:<11} {len(found['trials'])} points  {seconds:6.0f} s", flush=True)
    print(f"saved: {1 - rows[0][2] / rows[1][2]:.0%} of the time")


def main() -> None:
    """Measures what is asked for in a temporary folder; the user's store is used, so empty $RECIPE_CACHE for `cache`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["grid", "cache"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "grid":
            grid(Path(scratch), given.seeds)
        else:
            cache(Path(scratch), given.samples)


if __name__ == "__main__":
    main()
