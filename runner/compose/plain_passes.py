"""Passes for a model that no pipeline of the catalogue serves: an ONNX file, a PyTorch module, an architecture without recipes.

They use no data, so they hold for any graph: what needs calibration is left to `recipe quantize`.
"""

from __future__ import annotations

from typing import Any

from runner.compose.subject import Subject
from runner.errors import UsageError, did_you_mean
from runner.passes.graph.transformers_optimization import LOOKS_LIKE, MODEL_TYPES
from runner.targets.target import Target

PRECISIONS = ("int4", "int8", "fp16", "fp32")
_FUSED = ("bert", "vit")  # graphs whose fusions were measured to pay
_QUANTIZED = "OnnxDynamicQuantization"


def plain_passes(subject: Subject, architecture: str | None, precision: str, target: Target) -> dict[str, dict[str, Any]]:
    """Returns the passes of a configuration, by name.

    Args:
        subject: the model.
        architecture: transformers' model type, where it is known.
        precision: int4, int8, fp16 or fp32.
        target: what the model is made for.

    Raises:
        UsageError: nothing makes that precision on the target without data.
    """
    legal = [one for one in PRECISIONS if one in (*target.precisions, "fp32") and not (one == "int8" and target.name != "cpu")]
    if precision not in legal:
        remedy = f"there are: {', '.join(legal)}"
        near = did_you_mean(precision, legal)
        cause = f"no chain of passes makes {precision} of such a model on {target.name}"
        raise UsageError("unknown-precision", cause, f"{near} {remedy}" if near.startswith("did") else remedy)
    passes: dict[str, dict[str, Any]] = {}
    alike = LOOKS_LIKE.get(architecture or "", architecture)
    fused = alike in MODEL_TYPES and alike in _FUSED and precision != "int8"
    if subject.kind != "onnx":
        tracing = {"use_dynamo_exporter": False, "target_opset": 17}
        passes["convert"] = {"type": "OnnxConversion", **(tracing if fused or precision == "int8" else {})}
    if fused and subject.kind != "onnx":
        options = {"attention_mask_format": 2, "enable_embed_layer_norm": False}
        passes["fuse"] = {
            "type": "OrtTransformersOptimization",
            "model_type": architecture,
            "opt_level": 0,
            "optimization_options": options,
        }
    if precision == "int8":
        passes["quantize"] = {
            "type": _QUANTIZED,
            "op_types_to_quantize": ["MatMul", "Gemm"],
            "per_channel": True,
            "reduce_range": True,
            "extra_options": {"MatMulConstBOnly": True},
        }
        return passes
    passes["tidy"] = {"type": "OnnxPeepholeOptimizer"}
    if precision == "int4":
        passes["quantize"] = {"type": "OnnxBlockWiseRtnQuantization", "bits": 4, "block_size": 32, "is_symmetric": False}
    elif precision == "fp16":
        passes["half"] = {"type": "OnnxFloatToFloat16", "keep_io_types": True}
    return passes
