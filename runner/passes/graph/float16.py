"""Half precision for an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from runner.errors import RunFailed
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.large_graphs import halve, without_weights
from runner.passes.graph.scopes import graphs_below

if TYPE_CHECKING:
    import onnx


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
    op_block_list: list[str] | None = Field(
        None, description="operator types that stay in fp32, besides those that have no kernel in half precision"
    )
    op_include_list: list[str] | None = Field(None, description="convert only these operator types")
    node_block_list: list[str] | None = Field(None, description="nodes that stay in fp32")
    node_include_list: list[str] | None = Field(None, description="convert only these nodes")
    force_fp16_initializers: bool = Field(False, description="convert weights that only fp32 operators use as well")
    force_fp16_inputs: dict[str, list[int]] | None = Field(None, description="inputs that become half in any case, by index")

    @model_validator(mode="after")
    def _one_list(self) -> OnnxFloatToFloat16Options:
        for kind in ("op", "node"):
            if getattr(self, f"{kind}_block_list") is not None and getattr(self, f"{kind}_include_list") is not None:
                raise ValueError(f"give either {kind}_block_list or {kind}_include_list")
        return self

    renamed: ClassVar[Mapping[str, str]] = {"force_fp32_ops": "op_block_list", "force_fp32_nodes": "node_block_list"}


def _apply(model: ModelHandle, options: OnnxFloatToFloat16Options, context: PassContext) -> ModelHandle:
    upcast = model.attributes.get("force_upcast")

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        if upcast:
            context.say("kept in fp32, since its configuration says that half precision overflows (force_upcast)")
            return graph
        if is_half(graph):
            context.say(f"{name} is in half precision already")
            return graph
        return to_half(graph, **_arguments(graph, options))

    return rewrite_each(model, context, change, options.external_data(), precision="fp32" if upcast else "fp16")


def is_half(model: onnx.ModelProto) -> bool:
    """Returns whether a graph holds weights in half precision and none of more than a few numbers in fp32."""
    import onnx

    tensors = [tensor for graph in graphs_below(model.graph) for tensor in graph.initializer]
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in tensors)
    return halves and not any(tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1 for tensor in tensors)


def to_half(model: onnx.ModelProto, *, use_symbolic_shape_infer: bool = True, **arguments: Any) -> onnx.ModelProto:
    """Returns a graph in half precision, by ONNX Runtime's converter, its nodes in order.

    Args:
        model: the graph; it is used up.
        use_symbolic_shape_infer: find types with ONNX Runtime's shape inference.
        arguments: the converter's.

    Raises:
        RunFailed: the converter gives up.
    """
    import onnx_ir as ir
    from onnxruntime.transformers.onnx_model import OnnxModel

    state_types(model)
    converter = OnnxModel(model)
    try:
        halve(converter, infer_types=use_symbolic_shape_infer, **arguments)
    except AssertionError as error:
        raise RunFailed(
            "half-precision",
            f"ONNX Runtime's converter does not take this graph{f': {error}' if str(error) else ''}",
            "branches that hold weights of the same name are the usual cause: put GraphSurgeries with "
            "DeduplicateSubgraphInitializers before",
        ) from error
    ordered = ir.serde.from_proto(converter.model)
    ordered.graph.sort()
    return ir.serde.to_proto(ordered)


def state_types(model: onnx.ModelProto) -> None:
    """States the types that ONNX's own inference finds: the converter puts no Cast at a value whose type is not stated.

    What is stated of initializers is dropped: the converter changes it even where the initializer stays as it is.
    """
    import onnx

    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    known = {value.name for value in graph.value_info}
    for value in [value for value in graph.value_info if value.name in constants]:
        graph.value_info.remove(value)
    for value in onnx.shape_inference.infer_shapes(without_weights(model)).graph.value_info:
        if value.name not in known | constants and value.type.tensor_type.elem_type:
            value.type.tensor_type.ClearField("shape")
            graph.value_info.append(value)


def _arguments(model: onnx.ModelProto, options: OnnxFloatToFloat16Options) -> dict[str, Any]:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    nodes = [node for graph in graphs_below(model.graph) for node in graph.node]
    blocked = list(DEFAULT_OP_BLOCK_LIST) + list(options.op_block_list or ())
    if options.op_include_list is not None:
        blocked = sorted({node.op_type for node in nodes} - set(options.op_include_list))
    left = options.node_block_list
    if options.node_include_list is not None:
        left = [node.name for node in nodes if node.name not in options.node_include_list]
    names = ("min_positive_val", "max_finite_val", "keep_io_types", "force_fp16_initializers", "force_fp16_inputs")
    return {
        **{name: getattr(options, name) for name in names},
        "use_symbolic_shape_infer": options.use_symbolic_shape_infer and not options.disable_shape_infer,
        "op_block_list": blocked,
        "node_block_list": left,
    }


PASS = Pass(
    name="OnnxFloatToFloat16",
    summary="Converts a graph from fp32 to half precision.",
    options=OnnxFloatToFloat16Options,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
)
