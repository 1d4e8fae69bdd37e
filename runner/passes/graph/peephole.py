"""Small clean-ups of a graph: constants folded, casts and reshapes in a row merged, dead nodes dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from runner.models.files import carry, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_MICROSOFT = "com.microsoft"


class OnnxPeepholeOptimizerOptions(ExternalDataOptions):
    """Options of OnnxPeepholeOptimizer."""

    onnxscript_optimize: bool = Field(True, description="fold constants, drop unused nodes, share equal subgraphs (onnxscript)")
    fuse_reshape_operations: bool = Field(True, description="one Reshape in place of two in a row, where the second flattens")
    cast_chain_elimination: bool = Field(True, description="one Cast in place of two in a row, where the first loses nothing")
    fix_com_microsoft_opset: bool = Field(True, description="declare version 1 of ONNX Runtime's own operators")

    split_skip_layer_normalization: bool = Field(
        False, description="Add and LayerNormalization in place of SkipLayerNormalization, whose kernel on CPU is slower"
    )

    retired: ClassVar[Mapping[str, str]] = {
        "onnxoptimizer_optimize": "the package onnxoptimizer is not needed: onnxscript_optimize does its work",
        "patch_unsupported_argmax_operator": "ONNX Runtime takes every ArgMax today",
        "fuse_transpose_qat": "onnxscript_optimize folds transposed constants",
    }


def optimize(model: ModelHandle, options: OnnxPeepholeOptimizerOptions, context: PassContext) -> ModelHandle:
    """Writes the cleaned graph; the other files go along."""
    import onnx_ir as ir

    file = model.file or "model.onnx"
    graph = ir.serde.deserialize_model(read_graph(model.path))
    before = sum(1 for _ in graph.graph.all_nodes())
    if options.onnxscript_optimize:
        _fold(graph)
    if options.cast_chain_elimination:
        _merge_casts(graph)
    if options.fuse_reshape_operations:
        _merge_reshapes(graph)
    if options.split_skip_layer_normalization:
        _split_skip_layer_normalization(graph)
    _drop_unused(graph)
    if options.fix_com_microsoft_opset:
        _declare_microsoft(graph)
    context.say(f"{before} nodes before, {sum(1 for _ in graph.graph.all_nodes())} after")
    write_graph(_proto(graph), context.output / file, options.external_data())
    carry(model, context.output, exclude={file})
    return ModelHandle(model.kind, context.output, file, model.task, model.attributes)


def _proto(graph: ir.Model) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.serde.serialize_model(graph)


def _fold(graph: ir.Model) -> None:
    import onnxscript.optimizer

    onnxscript.optimizer.optimize(graph)


def _drop_unused(graph: ir.Model) -> None:
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(graph)
    passes.RemoveUnusedOpsetsPass(process_functions=True)(graph)


def _only_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _merge_casts(graph: ir.Model) -> None:
    """Cast(Cast(x, wide), to) becomes Cast(x, to), where `wide` holds every value of x exactly."""
    for node in list(graph.graph.all_nodes()):
        if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
            continue
        first = node.inputs[0].producer()
        if first is None or first.op_type != "Cast" or first.domain or first.inputs[0] is None:
            continue
        source = first.inputs[0]
        if source.dtype is not None and _holds(source.dtype, first.attributes["to"].as_int()):
            node.replace_input_with(0, source)


def _holds(narrow: ir.DataType, wide: int) -> bool:
    """Says whether every value of the first type is a value of the second."""
    import numpy as np
    import onnx_ir as ir

    target = ir.DataType(wide)
    if narrow == target:
        return True
    try:
        return bool(np.can_cast(narrow.numpy(), target.numpy(), "safe")) and target not in (
            ir.DataType.BOOL,
            ir.DataType.STRING,
        )
    except TypeError:
        return False


def _merge_reshapes(graph: ir.Model) -> None:
    """Reshape(Reshape(x, any), [-1]) becomes Reshape(x, [-1])."""
    for node in list(graph.graph.all_nodes()):
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
            continue
        first, shape = node.inputs[0].producer(), node.inputs[1].const_value
        if first is None or first.op_type != "Reshape" or first.domain or shape is None:
            continue
        if shape.numpy().tolist() == [-1] and _only_use(node.inputs[0]):
            node.replace_input_with(0, first.inputs[0])


def _split_skip_layer_normalization(graph: ir.Model) -> None:
    """SkipLayerNormalization(x, skip, gamma, beta, bias) becomes LayerNormalization(x + bias + skip, gamma, beta).

    Its further outputs are the sum (the fourth), and mean and inverse deviation, which nothing reads at inference.
    """
    import onnx_ir as ir

    for node in list(graph.graph):
        if node.op_type != "SkipLayerNormalization" or node.domain != _MICROSOFT:
            continue
        given = [*node.inputs, None, None, None]
        x, skip, gamma, beta, bias = given[:5]
        new: list[ir.Node] = []
        if bias is not None:
            new.append(ir.node("Add", [x, bias], name=f"{node.name}/bias"))
            x = new[-1].outputs[0]
        new.append(ir.node("Add", [x, skip], name=f"{node.name}/skip"))
        total = new[-1].outputs[0]
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-12
        weights = [gamma] if beta is None else [gamma, beta]
        norm = {"axis": -1, "epsilon": epsilon}
        new.append(ir.node("LayerNormalization", [total, *weights], norm, name=f"{node.name}/normalize"))
        new[-1].outputs[0].name = node.outputs[0].name
        replaced = [new[-1].outputs[0], *node.outputs[1:3], total][: len(node.outputs)]
        ir.convenience.replace_nodes_and_values(graph.graph, node, [node], new, node.outputs, replaced)


def _declare_microsoft(graph: ir.Model) -> None:
    if any(node.domain == _MICROSOFT for node in graph.graph.all_nodes()):
        graph.opset_imports[_MICROSOFT] = 1


PASS = Pass(
    name="OnnxPeepholeOptimizer",
    summary="Cleans a graph up: folded constants, merged casts and reshapes, no dead nodes.",
    options=OnnxPeepholeOptimizerOptions,
    apply=optimize,
    takes=("onnx",),
    gives="onnx",
    packages=("onnxscript", "onnx-ir", "onnx"),
)
