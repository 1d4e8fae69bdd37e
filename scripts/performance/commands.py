"""Commands as a person waits for them: start, and a run that has nothing left to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from performance.contest import PeerFailed, Terms, ratio
from performance.models import by_recipe
from performance.peers import OLIVE_AI, environment, script
from performance.record import Row

OURS, OLIVE = "ours", "Olive"
START_BAR, CACHED_BAR = "<= 0.3", "<= 0.6"  # seconds
_STARTS = {"--help": ("--help",), "ls": ("ls",), "run --help": ("run", "--help")}
ROOT = Path(__file__).resolve().parents[2]
_QUIET = {"PYTHONPATH": str(ROOT), "OLIVE_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


def start_cases() -> list[str]:
    """Returns the commands whose start is timed."""
    return list(_STARTS)


def measure_start(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Returns the row of a command that prints and ends, beside Olive's help. Of the terms only the rounds count."""
    commands = {OURS: [sys.executable, "-m", "runner", *_STARTS[case]]}
    failed = {}
    try:
        asked = _STARTS[case] if case != "ls" else ("--help",)
        commands[OLIVE] = [script(environment(OLIVE_AI, cache), "olive"), *asked]
    except PeerFailed as error:
        failed[OLIVE] = str(error)
    return [
        _row(f"recipe {case}", commands, failed, START_BAR, terms.rounds, cache, "Olive: its --help" if case == "ls" else "")
    ]


def cached_cases() -> list[str]:
    """Returns the one configuration that both run twice."""
    return ["MiniLM-L6, export and fusion"]


def measure_cached(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Returns the row of the same configuration, run by both when everything in it is done."""
    work = cache / "cached-run"
    work.mkdir(parents=True, exist_ok=True)
    source = by_recipe("all-minilm-l6-v2", work / "recipe").source
    configs = {}
    for name in (OURS, OLIVE):
        document = {
            "input_model": {"type": "HfModel", "model_path": str(source), "task": "feature-extraction"},
            "passes": {
                "convert": {"type": "OnnxConversion", "target_opset": 17},
                "fuse": {"type": "OrtTransformersOptimization", "model_type": "bert"},
            },
            "output_dir": str(work / name),
            "cache_dir": str(work / "cache"),
        }
        configs[name] = work / f"{name}.json"
        configs[name].write_text(json.dumps(document), encoding="utf-8")
    commands = {OURS: [sys.executable, "-m", "runner", "run", "--config", str(configs[OURS])]}
    failed = {}
    try:
        olive = script(environment(OLIVE_AI, cache), "olive")
        commands[OLIVE] = [olive, "run", "--config", str(configs[OLIVE])]
        _timed(commands[OLIVE], work)
    except PeerFailed as error:
        failed[OLIVE] = str(error)
        commands.pop(OLIVE, None)
    _timed(commands[OURS], work)
    return [_row(case, commands, failed, CACHED_BAR, terms.rounds, work, "")]


def _row(
    case: str,
    commands: Mapping[str, Sequence[str]],
    failed: Mapping[str, str],
    bar: str,
    rounds: int,
    folder: Path,
    remark: str,
) -> Row:
    """Commands in turns, each once before that to warm the system's cache; the bar is of our seconds."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        names = list(commands)
        for name in names if number % 2 else reversed(names):
            seconds = _timed(commands[name], folder)
            times[name] += [seconds] if number else []
    medians = {name: median(one) for name, one in times.items()}
    told = f"{1 / ratio(times[OURS], times[OLIVE]):.0f} times as fast as Olive" if OLIVE in times else ""
    remark = "; ".join(one for one in (told, remark) if one)
    return Row(case, "s", medians, medians[OURS], "our seconds", bar, failed, remark)


def _timed(command: Sequence[str], folder: Path) -> float:
    variables = {**os.environ, **_QUIET}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # commands that people install find their modules compiled
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise PeerFailed(f"{' '.join(command[-3:])}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return seconds
