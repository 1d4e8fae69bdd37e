"""Which passes capture the ONNX graph of a model: the exporter of PyTorch, or the builder of onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.catalog.scaffold import Decision
from runner.compose.known import Known
from runner.compose.single_step import Chain, Steps, merged_first
from runner.errors import UsageError
from runner.passes.genai.builder_options import QUANTISED
from runner.targets.target import Target

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
_BUILT = ("genai", "whisper")  # kinds that onnxruntime-genai runs


@dataclass(frozen=True)
class ExportWish:
    """How a graph is to be captured; what is None is decided.

    Attributes:
        builder: by onnxruntime-genai's builder.
        genai: so that onnxruntime-genai runs it: by the builder where that knows the architecture, else by PyTorch's
            exporter with the key-value cache.
        precision: one of `PRECISIONS`.
        fixed: axes of the inputs by name, and their sizes.
        conversion: further options of OnnxConversion, those that were given.
        building: further options of ModelBuilder, those that were given.
    """

    builder: bool = False
    genai: bool = False
    precision: str | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    conversion: Mapping[str, Any] = field(default_factory=dict)
    building: Mapping[str, Any] = field(default_factory=dict)


def export_graph(known: Known, wish: ExportWish, target: Target) -> Chain:
    """Returns the passes that capture a model's graph, and why it is these.

    Raises:
        UsageError: the model is a graph already, or options do not go together.
    """
    subject = known.subject
    if subject.kind == "onnx":
        raise UsageError(
            "is-a-graph", f"{subject.word} is an ONNX graph already",
            "'recipe run-pass --pass-name OnnxOpVersionConversion' changes its opset, 'recipe quantize' its weights",
        )  # fmt: skip
    by_builder, why = _exporter(known, wish)
    precision = wish.precision or ("fp16" if by_builder and target.name != "cpu" else "fp32")
    steps = merged_first(known, _built(wish, precision, target) if by_builder else _converted(wish, precision))
    if wish.fixed:
        steps["fix"] = {
            "type": "DynamicToFixedShape", "dim_param": list(wish.fixed), "dim_value": list(wish.fixed.values())
        }  # fmt: skip
    decisions = [
        Decision("model", subject.word or str(subject.details.get("model_script")), _about(known)),
        Decision("exporter", "ModelBuilder" if by_builder else "OnnxConversion", why),
        Decision("precision", precision, "asked for" if wish.precision else f"the usual one on {target.name}"),
        Decision("target", target.name, target.provider),
    ]
    return Chain(f"{precision}-onnx", precision, steps, (), decisions, _notes(wish, precision, target, by_builder))


def _about(known: Known) -> str:
    if known.subject.kind == "hf":
        return f"a {known.architecture}, for {known.subject.task}" if known.twin else f"for {known.subject.task}"
    return "a pipeline that draws" if known.subject.kind == "diffusers" else "a PyTorch module of a script"


def _exporter(known: Known, wish: ExportWish) -> tuple[bool, str]:
    """Returns whether the builder makes the graph, and why."""
    told = known.kind.name if known.kind else None
    if wish.builder:
        if known.subject.kind != "hf" or (told is not None and told not in _BUILT):
            raise UsageError(
                "not-for-builder", "onnxruntime-genai's builder makes language and speech models only", "leave it out"
            )
        return True, "asked for"
    if wish.genai:
        if told in _BUILT:
            return True, "it knows the architecture, and onnxruntime-genai runs what it makes"
        return False, "the builder does not know the architecture; the graph keeps its key-value cache"
    if wish.building:
        given = ", ".join(f"--{name}" for name in wish.building)
        raise UsageError("bad-usage", f"{given}: the exporter of PyTorch knows no such option", "add --use_model_builder")
    return False, "PyTorch's exporter, unless --use_model_builder asks for the other"


def _built(wish: ExportWish, precision: str, target: Target) -> Steps:
    given = [name for name in wish.conversion if name != "save_metadata_for_token_generation"]
    if given:
        listed = ", ".join(f"--{name}" for name in given)
        raise UsageError("bad-usage", f"{listed}: the builder writes the graph itself and knows no such option", "leave it out")
    level = {"int4_accuracy_level": 4} if precision in QUANTISED and target.name == "cpu" else {}
    return {"build": {"type": "ModelBuilder", "precision": precision, **level, **wish.building}}


def _converted(wish: ExportWish, precision: str) -> Steps:
    if precision in QUANTISED:
        raise UsageError(
            "not-an-export", f"the exporter of PyTorch makes no {precision} graph",
            f"'recipe quantize --precision {precision}' does, or --use_model_builder for a language model",
        )  # fmt: skip
    if precision == "bf16":
        raise UsageError(
            "not-an-export",
            "no pass makes a bf16 graph of an exported one",
            "add --torch_dtype bfloat16 or --use_model_builder",
        )
    metadata = {"save_metadata_for_token_generation": True} if wish.genai else {}
    steps: Steps = {"convert": {"type": "OnnxConversion", **metadata, **wish.conversion}}
    if precision == "fp16":
        steps["half"] = {"type": "OnnxFloatToFloat16", "keep_io_types": True}
    return steps


def _notes(wish: ExportWish, precision: str, target: Target, by_builder: bool) -> list[str]:
    if precision == "fp16" and target.name == "cpu" and not by_builder:
        return ["few operators have a kernel in half precision on a CPU: such a model is for a GPU"]
    return []
