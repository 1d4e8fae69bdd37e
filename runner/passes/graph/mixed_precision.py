"""Half precision for a graph, but not where it costs accuracy: chosen operators, and the last product before the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.float16 import is_half, to_half
from runner.passes.graph.scopes import Scope, constant, maker

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("MatMul", "Gemm")
# What may stand between the last product and the output without computing with weights of its own.
_TRANSPARENT = ("Add", "Cast", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Tanh", "Div", "Transpose", "Unsqueeze")


class OrtMixedPrecisionOptions(ExternalDataOptions):
    """Options of OrtMixedPrecision."""

    op_block_list: list[str] = Field(
        ["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Relu", "Add"],
        description="operator types that stay in fp32, besides those that have no kernel in half precision",
    )
    atol: float = Field(
        1e-6,
        gt=0,
        description="weights of the last product that change by less in half precision were trained in it; "
        "otherwise that product and the logits stay in fp32",
    )


def _apply(model: ModelHandle, options: OrtMixedPrecisionOptions, context: PassContext) -> ModelHandle:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        if is_half(graph):
            context.say(f"{name} is in half precision already")
            return graph
        output = graph.graph.output[0].name
        product = last_product(graph.graph)
        trained_half = product is not None and _lost(product, graph.graph) < options.atol
        kept = product is not None and not trained_half
        context.say(f"{name}: {f'{output} and the product before it stay' if kept else 'nothing of the head stays'} in fp32")
        return to_half(
            graph,
            keep_io_types=[output] if kept else [],
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *options.op_block_list],
            node_block_list=[product.name] if kept and product is not None else [],
            force_fp16_initializers=trained_half,
        )

    return rewrite_each(model, context, change, options.external_data(), precision="fp16")


def last_product(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Returns the product with a weight that the first output comes from; None where another computation lies between.

    It has a name afterwards.
    """
    scope = [Scope.of(graph)]
    node = maker(graph.output[0].name, scope)
    while node is not None and node.op_type in _TRANSPARENT:
        made = (maker(name, scope) for name in node.input)
        node = next((one for one in made if one is not None and one.op_type != "Constant"), None)
    if node is None or node.op_type not in _PRODUCTS or _weight(node, scope) is None:
        return None
    node.name = node.name or f"{node.output[0]}_{node.op_type}"
    return node


def _weight(node: onnx.NodeProto, scope: list[Scope]) -> onnx.TensorProto | None:
    import onnx

    name = node.input[1]
    turned = maker(name, scope)
    found = constant(turned.input[0] if turned is not None and turned.op_type == "Transpose" else name, scope)
    return found[0] if found is not None and found[0].data_type == onnx.TensorProto.FLOAT else None


def _lost(product: onnx.NodeProto, graph: onnx.GraphProto) -> float:
    """Returns by how much a weight of a product changes at most in half precision."""
    from onnxruntime.transformers.float16 import float_to_float16_max_diff

    return float(float_to_float16_max_diff(_weight(product, [Scope.of(graph)])))


PASS = Pass(
    name="OrtMixedPrecision",
    summary="Converts a graph to half precision, leaving chosen operators and the last product in fp32.",
    options=OrtMixedPrecisionOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx", "onnx-ir"),
)
