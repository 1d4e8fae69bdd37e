"""`recipe optimize`, which people also know as `auto-opt`: one command from a model to an optimised model."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from runner.cli.composed_flags import run_flags, subject_and_target, subject_flags
from runner.cli.flags import adapter_flag, flag, flags
from runner.cli.options import catalog

if TYPE_CHECKING:
    from runner.compose.optimise import Decided, Wish


@click.command()
@flags(
    *subject_flags,
    flag("precision", "--precision", metavar="NAME", help="int4, int8, fp16, fp32, bf16 on CUDA; the recipe's own by default."),
    flag("trade", "--trade", type=click.Choice(["size", "speed", "quality"]), help="What matters most, where it is open."),
    flag("use_ort_genai", "--use_ort_genai", is_flag=True, help="Make a folder that onnxruntime-genai loads (the default)."),
    flag("use_model_builder", "--use_model_builder", is_flag=True, help="The same."),
    adapter_flag,
    *run_flags,
)
def optimize(
    use_ort_genai: bool,
    use_model_builder: bool,
    max_memory: float | None,
    force: bool,
    dry_run: bool,
    log_level: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a small, fast ONNX model of any model.

    The pipeline is the catalogue's recipe where the model has one, else that of the nearest architecture. The recipe that was
    used goes to OUTPUT-recipe: run it again, change it, or offer it to the catalogue.
    """
    from runner.cli.carry_out import Way, limits_of
    from runner.cli.composed_run import run_composed, say_at
    from runner.compose.optimise import decide

    limits = limits_of(max_memory)
    decided = decide(_wish(limits.memory, given), lambda text: say_at(log_level, text))
    for text in _unused(decided, use_ort_genai or use_model_builder):
        say_at(log_level, text)
    run_composed(decided.composed, decided.request, Way(dry_run, force, as_json, limits), log_level)


def _wish(max_memory: int | None, given: dict[str, Any]) -> Wish:
    from runner.compose.optimise import Wish

    subject, target = subject_and_target(given)
    precision = given.pop("precision")
    command = shlex.join(["recipe", *sys.argv[1:]])
    return Wish(
        subject, target=target, precision=precision.lower() if precision else None, max_memory=max_memory, catalog=catalog(),
        command=command, **given,
    )  # fmt: skip


def _unused(decided: Decided, genai: bool) -> list[str]:
    """What flags that were given say nothing to this model."""
    passes = [step.type for step in decided.request.config.passes.values()]
    if genai and "ModelBuilder" not in passes:
        return ["--use_ort_genai has nothing to do here: this model does not generate text with onnxruntime-genai's decoder"]
    return []
