"""Measures the search on real weights: how soon TPE finds the best of a grid, and what the store saves.

    python scripts/search_figures.py grid    # TPE and random sampling against all 48 points of two grids, 20 seeds each
    python scripts/search_figures.py cache   # a pass-by-pass search with the store, and with --no-cache

A grid is measured once, all 48 points; then the sampler is asked for its points, seed by seed, and told what was measured.
The objective is the size at a bar for the cosine of the outputs to PyTorch's on the engine's probe inputs: the same in every
run, so that no noise decides. A seed has found the best where it meets the goal and its size is within 1 % of the smallest
that meets it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from runner.compose.request import make_request
from runner.recipe.config import SearchStrategy
from runner.recipe.info import Gate
from runner.search.aims import Aims, Goal, Objective
from runner.search.sampling import next_point
from runner.search.space import Space, key_of
from runner.search.study import Trial

SAMPLES, CLOSE = 16, 1.01


@dataclass(frozen=True)
class Grid:
    """A space of 48 points.

    Attributes:
        recipe: what varies.
        space: values by option.
        bars: for the parity; each is a goal of its own on the same measured points.
    """

    recipe: str
    space: Mapping[str, Sequence[Any]]
    bars: Sequence[float]

    @property
    def axes(self) -> list[str]:
        """Returns the space as `--space` takes it."""
        return [f"passes.{name}={json.dumps({'choices': values})}" for name, values in self.space.items()]


GRIDS = (
    Grid(
        "all-minilm-l6-v2/cpu-int8-dynamic",
        {
            "quantize.op_types_to_quantize": [["MatMul"], ["MatMul", "Gather"]],
            "quantize.nodes_to_exclude": [
                ["*/layer.0/output/dense/*"],
                ["*/layer.[012]/output/dense/*"],
                ["*/output/dense/*"],
            ],
            "quantize.per_channel": [True, False],
            "quantize.reduce_range": [True, False],
            "quantize.weight_type": ["QInt8", "QUInt8"],
        },
        (0.98, 0.985, 0.99),
    ),
    Grid(
        "dinov2-small/cpu-int8-dynamic",
        {
            "quantize.nodes_to_exclude": [
                ["*/layer.11/*"],
                ["*/layer.0/mlp/*"],
                ["*/layer.[01]/mlp/*"],
                ["*/layer.0/*"],
                ["*/mlp/fc2/*"],
                ["*/attention/*"],
            ],
            "quantize.per_channel": [True, False],
            "quantize.reduce_range": [True, False],
            "quantize.weight_type": ["QInt8", "QUInt8"],
        },
        (0.999, 0.9995),
    ),
)
STEPS = {"rtn.bits": [8, 4], "build.accuracy_level": [4, 0, 1], "build.search": [{"max_length": 512}, {"max_length": 1024}]}
CHAIN = Grid("smollm2-135m-instruct/cpu-int4", STEPS, ())


def search(grid: Grid, output: Path, *options: str) -> tuple[dict[str, Any], float]:
    """Returns the record of a search, and the seconds that it took."""
    axes = [f"--space={axis}" for axis in grid.axes]
    command = [sys.executable, "-m", "runner", "search", grid.recipe, *axes, "--output-dir", str(output), "--json", *options]
    began = time.perf_counter()
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 4):
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found, seconds


def replayed(space: Space, known: Mapping[str, Trial], strategy: SearchStrategy, aims: Aims, best: float) -> int | None:
    """Returns how many points a sampler needs until one is as good as the best; None where `SAMPLES` are too few."""
    trials: list[Trial] = []
    for number in range(SAMPLES):
        point = next_point(space, trials, {key_of(trial.point) for trial in trials}, strategy, aims)
        if point is None:
            return None
        trials.append(known[key_of(point)])
        if _size(trials[-1], aims) <= best * CLOSE:
            return number + 1
    return None


def _size(trial: Trial, aims: Aims) -> float:
    """Returns the bytes of a model that meets the goal; infinite for any other."""
    return trial.figures["size"].value if trial.done and not aims.missed(trial.figures) else float("inf")


def grids(folder: Path, seeds: int) -> None:
    """Prints for each grid and bar how many seeds find the best, and with how many points."""
    print("recipe                            parity   meet it  as good  TPE finds  points  random finds  points")
    for number, grid in enumerate(GRIDS):
        bar = f"parity >= {grid.bars[0]}"
        told, _ = search(grid, folder / str(number), "--goal", bar, "--minimize", "size", "--sampler", "sequential")
        known = {
            key_of(one["point"]): Trial.from_json({k: v for k, v in one.items() if k != "missed"}) for one in told["trials"]
        }
        request = make_request(grid.recipe, [], space=grid.axes)
        space = Space.whole(request.loaded.axes)
        for at_least in grid.bars:
            aims = Aims((Objective("size", False),), (Goal("parity", Gate.parse("parity", f">= {at_least}")),))
            sizes = [_size(trial, aims) for trial in known.values()]
            best = min(sizes)
            cells = [f"{sum(size < float('inf') for size in sizes):>7}", f"{sum(size <= best * CLOSE for size in sizes):>7}"]
            for sampler in ("tpe", "random"):
                strategies = (SearchStrategy.model_validate({"sampler": sampler, "seed": seed}) for seed in range(seeds))
                needed = [replayed(space, known, strategy, aims, best) for strategy in strategies]
                found = [one for one in needed if one is not None]
                cells.append(f"{len(found):>3} of {seeds}  {median(found) if found else '-':>6}")
            print(f"{grid.recipe:<34} {at_least:>6}   {'  '.join(cells)}", flush=True)


def cache(folder: Path, samples: int) -> None:
    """Prints what the store saves of a pass-by-pass search."""
    # a goal of its own, since the recipe's gates would have every point benchmarked
    aims = ("--goal", "parity >= 0.9", "--minimize", "size", "--order", "pass-by-pass", "--sampler", "sequential")
    rows = []
    for name, options in (("store", ()), ("--no-cache", ("--no-cache",))):
        found, seconds = search(CHAIN, folder / name.strip("-"), *aims, "--samples", str(samples), *options)
        rows.append((name, len(found["trials"]), seconds))
        print(f"{name:<11} {len(found['trials'])} points  {seconds:6.0f} s", flush=True)
    print(f"saved: {1 - rows[0][2] / rows[1][2]:.0%} of the time")


def main() -> None:
    """Measures what is asked for in a temporary folder; the user's store is used, so empty $RECIPE_CACHE for `cache`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["grid", "cache"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "grid":
            grids(Path(scratch), given.seeds)
        else:
            cache(Path(scratch), given.samples)


if __name__ == "__main__":
    main()
