"""`recipe quantize`: one algorithm on one model."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.composed_flags import ListsCommand, data_flags, run_flags, subject_flags
from runner.cli.flags import adapter_flag, flag, flags


@click.command(cls=ListsCommand)
@flags(
    *subject_flags,
    flag("algorithm", "--algorithm", metavar="NAME", help="rtn, kquant, hqq, gptq, awq, quarot, dynamic or static."),
    flag("precision", "--precision", metavar="NAME", help="Of the weights: int4, int8 or uint8."),
    flag("act_precision", "--act_precision", metavar="NAME", help="Of the activations (static): uint8, int8, uint16, int16."),
    flag(
        "implementation", "--implementation", metavar="NAME",
        help="Who does it: checkpoint (autogptq, awq, quarot), builder, graph (ort, olive) or inc.",
    ),
    flag("block_size", "--block_size", "--group_size", type=click.IntRange(min=1), help="Weights that share a scale."),
    flag("symmetric", "--symmetric/--asymmetric", default=None, help="Without or with zero points."),
    flag("qdq", "--use_qdq_encoding", is_flag=True, help="QuantizeLinear and DequantizeLinear of the ONNX standard."),
    flag("keep_checkpoint", "--keep_checkpoint", is_flag=True, help="Leave the model in transformers' form, quantised."),
    *data_flags,
    adapter_flag,
    *run_flags,
)  # fmt: skip
def quantize(dry_run: bool, force: bool, as_json: bool, log_level: int, max_memory: float | None, **given: Any) -> None:
    """Quantise a model by one algorithm.

    A Hugging Face language model becomes a quantised ONNX model for onnxruntime-genai, any other one an ONNX graph; an ONNX
    file stays what it is. What is not said is as in the catalogue's recipes, and told.
    """
    from runner.catalog.discover import catalog_root
    from runner.cli.carry_out import Way, limits_of
    from runner.cli.composed_flags import data_wish, subject_and_wish
    from runner.cli.composed_run import run_composed, say_at
    from runner.compose.known import look_up
    from runner.compose.quantization import quantization
    from runner.compose.quantization_schemes import QuantizeWish
    from runner.compose.single_step import compose
    from runner.templating.clone import clone_of

    data = data_wish(given)
    subject, wish = subject_and_wish(given)
    known = look_up(subject, wish.catalog, wish.offline, lambda text: say_at(log_level, text))
    clone = clone_of(catalog_root(wish.catalog) / "recipe")
    chain = quantization(known, QuantizeWish(data=data, **given), wish.target, clone)
    composed, request = compose(known, chain, wish, f"{known.subject.name}: {chain.precision} for {wish.target.name}")
    run_composed(composed, request, Way(dry_run, force, as_json, limits_of(max_memory)), log_level)
