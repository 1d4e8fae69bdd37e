"""`recipe finetune`: an adapter for a language model, the merged model, and the recipe that makes it ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.composed_flags import data_flags, run_flags, subject_flags
from runner.cli.flags import flag, flags

if TYPE_CHECKING:
    from runner.compose.finetune import FineTuned
    from runner.engine.request import Request

_COUNT = click.IntRange(min=1)


@click.command()
@flags(
    *subject_flags,
    flag("method", "--method", default="lora", metavar="NAME", help="lora (the default), qlora, dora, loha or lokr."),
    flag("precision", "--precision", metavar="NAME", help="Make the ONNX model at once, in this precision; as --onnx."),
    flag("onnx", "--onnx", is_flag=True, help="Make the ONNX model at once: int4 unless --precision says another."),
    flag(
        "multi_lora", "--multi_lora", is_flag=False, flag_value="auto", type=click.Choice(["auto", "fp32", "fp16"]),
        help="Make an ONNX base model as well that takes this adapter and others at run time.",
    ),
    *data_flags,
    flag("train_split", "--train_split", metavar="NAME", help="Split to train on; as --split."),
    flag("eval_split", "--eval_split", metavar="NAME", help="Split that is held out."),
    flag("eval_rows", "--eval_dataset_size", type=_COUNT, metavar="N", help="Rows that are held out, drawn by the seed."),
    flag("eval_share", "--eval_fraction", type=click.FloatRange(0, 0.5), default=0.1, help="Else this share; 0.1, 0 for none."),
    flag("chat", "--chat_template", is_flag=True, help="Rows are conversations; as --use_chat_template."),
    flag("messages", "--messages", default="messages", metavar="COLUMN", help="Column of conversations."),
    flag("packing", "--packing", "--pack", is_flag=True, help="Join rows to windows of --max_seq_len tokens."),
    flag("answers_only", "--answers_only/--whole_text", default=None, help="What the loss counts; decided by the data."),
    flag("r", "--lora_r", type=_COUNT, default=16, help="Rank of the adapter; 16."),
    flag("alpha", "--lora_alpha", type=float, default=32, help="The adapter is scaled by alpha / r; 32."),
    flag("dropout", "--lora_dropout", type=click.FloatRange(0, 1, max_open=True), help="Dropout of the adapter's inputs."),
    flag("target_modules", "--target_modules", metavar="NAMES", help="Layers with an adapter, separated by commas."),
    flag("learning_rate", "--learning_rate", type=click.FloatRange(min=0, min_open=True), default=2e-4, help="2e-4."),
    flag("max_steps", "--max_steps", type=_COUNT, help="Optimiser steps; goes before --epochs."),
    flag("epochs", "--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes over the data; 3 by default."),
    flag("gradient_accumulation_steps", "--gradient_accumulation_steps", type=_COUNT, default=1, help="Batches a step; 1."),
    flag("torch_dtype", "--torch_dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="On a GPU."),
    flag("seed", "--seed", type=click.IntRange(min=0), default=42, help="Of first values, dropout and order; 42."),
    *run_flags,
)  # fmt: skip
def finetune(dry_run: bool, force: bool, as_json: bool, log_level: int, max_memory: float | None, **given: Any) -> None:
    """Fine-tune a language model on data of your own.

    The folder gets adapter/ (peft's format), model/ (merged) and onnx-recipe/, which turns it into ONNX; with --multi_lora
    also multi-lora/, a base model of onnxruntime-genai whose adapters are files that are loaded and exchanged at run time.
    """
    from dataclasses import replace

    from runner.cli.carry_out import Way, carry_out, limits_of, run_watched
    from runner.cli.composed_flags import data_wish, subject_and_wish
    from runner.cli.composed_run import is_quiet, run_composed, say_at
    from runner.compose.finetune import finish, prepare
    from runner.compose.training import Training

    def say(text: str) -> None:
        say_at(log_level, text)

    batch_size = given["batch_size"] or 4
    data = data_wish(given)
    data = replace(
        data, split=data.split or given.pop("train_split"), use_chat_template=data.use_chat_template or given.pop("chat")
    )
    subject, wish = subject_and_wish(given)
    precision, at_once = given.pop("precision"), given.pop("onnx")
    modules = tuple(part.strip() for part in (given.pop("target_modules") or "").split(",") if part.strip())
    asked = {name: value for name, value in given.items() if name in Training.__dataclass_fields__}
    training = Training(**asked, batch_size=batch_size, target_modules=modules)
    prepared = prepare(subject, data, training, wish, given["multi_lora"], say)
    way = Way(dry_run, force, as_json, limits_of(max_memory), quiet=is_quiet(log_level))
    if as_json and not dry_run:
        _, outcome = run_watched(prepared.request, way)
    else:
        outcome = run_composed(prepared.composed, prepared.request, way, log_level)
    if outcome is None:
        return
    made = finish(outcome, prepared, wish, precision, say)
    wanted = [prepared.multi_lora, made.onnx.request if at_once or precision else None]
    for request in filter(None, wanted):
        (run_watched if as_json else carry_out)(request, way)
    if as_json:
        click.echo(json.dumps(_plainly(made, wanted[1]), indent=2))
    else:
        _show(made, wanted[1])


def _plainly(made: FineTuned, onnx: Request | None) -> dict[str, Any]:
    """Returns what was made as JSON data, with the folder of the ONNX model where that was made at once."""
    from dataclasses import fields

    told = {one.name: getattr(made, one.name) for one in fields(made)} | {"onnx": onnx and onnx.output_dir}
    return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def _show(made: FineTuned, onnx: Request | None) -> None:
    from runner.compose.finetune import ADAPTER_FILE

    click.echo(f"adapter  {made.adapter}")
    click.echo(f"merged   {made.model}")
    click.echo(f"to ONNX  {made.recipe}")
    if made.multi_lora is not None:
        click.echo(f"genai    {made.multi_lora}: takes adapters, of which {ADAPTER_FILE} in it is this one")
    held = ""
    if made.held_out_before is not None:
        held = f", held-out loss {made.held_out_before:.3f} -> {made.held_out_after:.3f}"
    click.echo(f"trained  {made.steps} steps on {made.examples} examples, mean loss {made.loss:.3f}{held}")
    if made.left_out:
        click.echo(f"         {made.left_out} more were left out, since the same text is held out")
    if onnx is None:
        click.echo(f"next     recipe run {made.recipe}")
