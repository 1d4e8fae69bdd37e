"""Options of the verbs that start from a model, under the names that people know from Olive, with underscores or dashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runner.cli.options import GIGABYTES

F = TypeVar("F", bound=Callable[..., Any])

# Olive's numbers, and the words that Python's logging has for them.
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def flag(name: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Returns an option whose long names may be typed with underscores or with dashes; the command gets it as `name`."""
    spelt = [spelling for one in names for spelling in _spellings(one)]
    return click.option(*dict.fromkeys(spelt), name, **attributes)


def _spellings(text: str) -> list[str]:
    """Returns the option as it is shown, and its other spelling; of a pair such as --a/--no-a both sides change."""
    if not text.startswith("--"):
        return [text]
    dashed = "/".join(f"--{side[2:].replace('_', '-')}" for side in text.split("/"))
    lined = "/".join(f"--{side[2:].replace('-', '_')}" for side in text.split("/"))
    others = [one for one in (dashed, lined) if set(one.split("/")).isdisjoint(text.split("/"))]
    return [text, *others]


def _level(_: click.Context, __: click.Parameter, value: str | None) -> int:
    if value is None:
        return 1
    return int(value) if value.isdigit() else LOG_LEVELS.index(value)


model_flag = flag(
    "model", "--model_name_or_path", "-m", "--model", metavar="MODEL",
    help="Hugging Face id, model folder, ONNX file, or the weights of a PyTorch model with --model_script.",
)  # fmt: skip
output_flag = flag(
    "output", "--output_path", "-o", "--output-dir", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where the model goes; models/NAME by default. The recipe goes to FOLDER-recipe.",
)  # fmt: skip
task_flag = flag("task", "--task", "-t", metavar="TASK", help="Hugging Face task; what the architecture is for by default.")
device_flag = flag("device", "--device", type=click.Choice(["cpu", "gpu"]), help="Device that the model is made for.")
provider_flag = flag(
    "provider", "--provider", metavar="NAME", help="CPUExecutionProvider, CUDAExecutionProvider or DmlExecutionProvider."
)
trust_flag = flag(
    "trust", "--trust_remote_code", "--trust", is_flag=True, help="Run code that comes with the model, and the model script."
)
offline_flag = flag("offline", "--offline", is_flag=True, help="No network; says before any work what is missing.")
log_level_flag = flag(
    "log_level", "--log_level", callback=_level, type=click.Choice([*"01234", *LOG_LEVELS]), metavar="0-4",
    help="0 debug (with the worker's log), 1 info, 2 warning, 3 error, 4 critical; 1 by default.",
)  # fmt: skip
script_flags = (
    flag(
        "model_script",
        "--model_script",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Script of a PyTorch model.",
    ),
    flag("script_dir", "--script_dir", type=click.Path(path_type=Path), metavar="FOLDER", help="Modules that it imports."),
)
adapter_flag = flag("adapter", "--adapter_path", "-a", metavar="FOLDER", help="Adapter in peft's format, to be merged in.")
dry_run_flag = flag("dry_run", "--dry_run", is_flag=True, help="Write the recipe, say what would be done, and stop.")
max_memory_flag = flag("max_memory", "--max_memory", type=GIGABYTES, metavar="GB", help="Memory that the run may use.")
smoke_flag = flag("smoke", "--smoke", is_flag=True, help="Use a tiny random-weight twin of the model and synthetic data.")
threads_flag = flag("threads", "--threads", type=click.IntRange(min=1), help="Threads to compute with; one a core by default.")
set_flag = flag("overrides", "--set", multiple=True, metavar="PATH=VALUE", help="Override in the config. Repeatable.")


def flags(*chosen: Callable[[F], F]) -> Callable[[F], F]:
    """Returns a decorator that adds options in the order in which they are given."""

    def add(function: F) -> F:
        for one in reversed(chosen):
            function = one(function)
        return function

    return add
