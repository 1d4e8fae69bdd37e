"""`recipe export`: the ONNX graph of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from runner.cli.composed_flags import run_flags, subject_flags
from runner.cli.flags import adapter_flag, flag, flags
from runner.errors import UsageError

# Flags of the exporter of PyTorch, and of onnxruntime-genai's builder, by the option of the pass.
_CONVERSION = ("target_opset", "use_dynamo_exporter", "torch_dtype", "past_key_value_name")
_BUILDING = ("int4_block_size", "int4_accuracy_level", "exclude_embeds", "exclude_lm_head", "enable_cuda_graph")


def _axes(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    fixed = {}
    for part in (part.strip() for value in values for part in value.split(",") if part.strip()):
        name, equals, size = part.partition("=")
        if not equals or not size.strip().isdigit() or int(size) < 1:
            raise UsageError(
                "bad-axis", f"{parameter.opts[0]} {part}: this is not AXIS=SIZE", "for example --fixed batch=1,sequence=128"
            )
        fixed[name.strip()] = int(size)
    return fixed


def _switch(name: str, text: str) -> Any:
    """A flag that may be followed by a value, as older guides write it: --exclude_embeds True."""
    return flag(name, f"--{name}", is_flag=False, flag_value="true", type=bool, default=None, metavar="[true|false]", help=text)


@click.command()
@flags(
    *subject_flags,
    _switch("use_model_builder", "By the builder of onnxruntime-genai."),
    _switch("use_ort_genai", "So that onnxruntime-genai runs it."),
    flag("precision", "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8", "int4"]), help="Of the weights."),
    flag("target_opset", "--target_opset", "--opset", type=int, metavar="N", help="ONNX opset."),
    _switch("use_dynamo_exporter", "By torch.export; by the older tracing exporter where it is false."),
    click.option("--dynamo/--no-dynamo", "dynamo", default=None, help="The same."),
    flag("torch_dtype", "--torch_dtype", metavar="NAME", help="Cast the model before: float32, float16 or bfloat16."),
    flag("past_key_value_name", "--past_key_value_name", metavar="NAME", help="Inputs of the key-value cache."),
    flag(
        "fixed", "--fixed", "--fixed_param_dict", multiple=True, callback=_axes, metavar="AXIS=SIZE",
        help="Fix axes of the inputs, e.g. batch=1,sequence=128. Repeatable.",
    ),
    flag("int4_block_size", "--int4_block_size", type=int, metavar="N", help="Builder: weights that share a scale."),
    flag("int4_accuracy_level", "--int4_accuracy_level", type=int, metavar="N", help="Builder: products in 1 fp32 … 4 int8."),
    _switch("exclude_embeds", "Builder: leave the embedding out."),
    _switch("exclude_lm_head", "Builder: leave the head out."),
    _switch("enable_cuda_graph", "Builder: capture CUDA graphs."),
    adapter_flag,
    *run_flags,
)  # fmt: skip
def export(dry_run: bool, force: bool, as_json: bool, log_level: int, max_memory: float | None, **given: Any) -> None:
    """Capture the ONNX graph of a model, without any optimisation.

    A Hugging Face model by id or folder, a diffusers pipeline, or a PyTorch model with its script. Language models for
    onnxruntime-genai are built with --use_model_builder.
    """
    from runner.cli.carry_out import Way, limits_of
    from runner.cli.composed_flags import subject_and_wish
    from runner.cli.composed_run import run_composed, say_at
    from runner.compose.export_graph import ExportWish, export_graph
    from runner.compose.known import look_up
    from runner.compose.single_step import compose

    subject, wish = subject_and_wish(given)
    if given["dynamo"] is not None:
        given["use_dynamo_exporter"] = given["dynamo"]
    asked = ExportWish(
        bool(given["use_model_builder"]), bool(given["use_ort_genai"]), given["precision"], given["fixed"],
        {name: given[name] for name in _CONVERSION if given[name] is not None},
        {name: given[name] for name in _BUILDING if given[name] is not None},
    )  # fmt: skip
    known = look_up(subject, wish.catalog, wish.offline, lambda text: say_at(log_level, text))
    chain = export_graph(known, asked, wish.target)
    composed, request = compose(known, chain, wish, f"{known.subject.name} as an ONNX graph")
    run_composed(composed, request, Way(dry_run, force, as_json, limits_of(max_memory)), log_level)
