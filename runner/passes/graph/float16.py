"""Half precision for an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from runner.models.files import carry, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions


class OnnxFloatToFloat16Options(ExternalDataOptions):
    """Options of OnnxFloatToFloat16."""

    min_positive_val: float = Field(5.96e-08, ge=5.96e-08, description="smaller constants are raised to this value")
    max_finite_val: float = Field(65504.0, le=65504.0, description="larger constants are lowered to this value")
    keep_io_types: bool | list[str] = Field(
        False, description="inputs and outputs keep their types; a list names those that do"
    )
    use_symbolic_shape_infer: bool = Field(
        True, description="find types with ONNX Runtime's shape inference, which knows fused operators"
    )
    disable_shape_infer: bool = Field(False, description="take the types that the graph states")
    op_block_list: list[str] | None = Field(None, description="operator types that stay in fp32")
    node_block_list: list[str] | None = Field(None, description="nodes that stay in fp32")
    force_fp16_initializers: bool = Field(False, description="convert weights that only fp32 operators use as well")
    force_fp16_inputs: dict[str, list[int]] | None = Field(None, description="inputs that become half in any case, by index")

    renamed: ClassVar[Mapping[str, str]] = {"force_fp32_ops": "op_block_list", "force_fp32_nodes": "node_block_list"}


def convert(model: ModelHandle, options: OnnxFloatToFloat16Options, context: PassContext) -> ModelHandle:
    """Writes the graph in half precision; the other files go along."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    file = model.file or "model.onnx"
    graph = OnnxModel(read_graph(model.path))
    graph.convert_float_to_float16(
        use_symbolic_shape_infer=options.use_symbolic_shape_infer and not options.disable_shape_infer,
        **_converter_arguments(options),
    )
    write_graph(graph.model, context.output / file, options.external_data())
    carry(model, context.output, exclude={file})
    return ModelHandle(model.kind, context.output, file, model.task, {**model.attributes, "precision": "fp16"})


def _converter_arguments(options: OnnxFloatToFloat16Options) -> dict[str, Any]:
    names = (
        "min_positive_val", "max_finite_val", "keep_io_types", "disable_shape_infer", "op_block_list", "node_block_list",
        "force_fp16_initializers", "force_fp16_inputs",
    )  # fmt: skip
    return {name: getattr(options, name) for name in names}


PASS = Pass(
    name="OnnxFloatToFloat16",
    summary="Converts a graph from fp32 to half precision.",
    options=OnnxFloatToFloat16Options,
    apply=convert,
    takes=("onnx",),
    gives="onnx",
    packages=("onnxruntime", "onnx"),
)
