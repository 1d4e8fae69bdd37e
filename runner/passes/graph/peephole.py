"""Small clean-ups of a graph: constants folded, casts and reshapes in a row merged, dead nodes dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_MICROSOFT = "com.microsoft"


class OnnxPeepholeOptimizerOptions(ExternalDataOptions):
    """Options of OnnxPeepholeOptimizer."""

    onnxscript_optimize: bool = Field(True, description="fold constants, drop unused nodes, share equal subgraphs (onnxscript)")
    onnxoptimizer_optimize: bool = Field(
        True,
        description="share equal weights and subgraphs, drop Identity: by the package onnxoptimizer, or onnx-ir without it",
    )
    fuse_reshape_operations: bool = Field(True, description="one Reshape in place of two in a row, where the second flattens")
    cast_chain_elimination: bool = Field(
        True,
        description="no Casts to another floating-point type and back, and one in place of two where the first loses nothing",
    )
    fix_com_microsoft_opset: bool = Field(
        True, description="declare version 1 of ONNX Runtime's own operators, in the functions of the model as well"
    )

    split_skip_layer_normalization: bool = Field(
        False, description="Add and LayerNormalization in place of SkipLayerNormalization, whose kernel on CPU is slower"
    )

    use_multi_head_attention: bool = Field(
        False,
        description="ONNX Runtime's MultiHeadAttention in place of ONNX's Attention, whose kernel on CPU is slower; a mask that"
        " lets everything through is dropped",
    )
    skip_unread_tokens: bool = Field(
        False,
        description="where only one token of the last layer is read, such as a class token, compute that layer for it alone;"
        " with use_multi_head_attention",
    )
    fold_attention_biases: bool = Field(
        False,
        description="take the biases of keys, which change nothing, and of values out of MultiHeadAttention; what projects"
        " its result holds the latter",
    )
    align_wide_products: bool = Field(
        False,
        description="compute a product in half precision that is 1,024 wide or wider, such as that over a vocabulary, and whose"
        " width is no multiple of 8 at the next multiple of 64, with its bias inside, and cut that off: faster on GPUs",
    )
    use_product_for_patches: bool = Field(
        False,
        description="a product in place of a convolution that embeds the patches of a picture, slow on GPUs",
    )

    retired: ClassVar[Mapping[str, str]] = {
        "patch_unsupported_argmax_operator": "ONNX Runtime takes every ArgMax today",
        "fuse_transpose_qat": "onnxscript_optimize folds transposed constants",
    }


def optimize(model: ModelHandle, options: OnnxPeepholeOptimizerOptions, context: PassContext) -> ModelHandle:
    """Writes the cleaned graph, or graphs; the other files go along."""
    return rewrite_each(model, context, lambda proto, _: _cleaned(proto, options, context), options.external_data())


def _cleaned(proto: onnx.ModelProto, options: OnnxPeepholeOptimizerOptions, context: PassContext) -> onnx.ModelProto:
    import onnx_ir as ir

    before = len(proto.graph.node)
    if options.onnxoptimizer_optimize:
        proto = _optimized(proto, context)
    graph = ir.serde.deserialize_model(proto)
    if options.onnxscript_optimize:
        _fold(graph)
    changed = _merge_casts(graph) if options.cast_chain_elimination else 0
    changed += _merge_reshapes(graph) if options.fuse_reshape_operations else 0
    if options.split_skip_layer_normalization:
        _split_skip_layer_normalization(graph)
    if options.use_multi_head_attention:
        changed += _take_multi_head_attention(graph, context)
    if options.skip_unread_tokens:
        changed += _skip_unread_tokens(graph, context)
    if options.fold_attention_biases:
        changed += _fold_attention_biases(graph, context)
    if options.align_wide_products:
        changed += _align_wide_products(graph, context)
    if options.use_product_for_patches:
        changed += _use_product_for_patches(graph, context)
    if changed or options.onnxscript_optimize or options.split_skip_layer_normalization:
        _drop_unused(graph)
    if options.fix_com_microsoft_opset:
        _declare_microsoft(graph)
    context.say(f"{before} nodes before, {sum(1 for _ in graph.graph.all_nodes())} after")
    return ir.serde.serialize_model(graph)


def _optimized(proto: onnx.ModelProto, context: PassContext) -> onnx.ModelProto:
    """Returns what onnxoptimizer makes of a graph; without that package, what onnx-ir's passes of that purpose make of it."""
    try:
        import onnxoptimizer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        context.say("onnxoptimizer is not installed: equal weights and subgraphs are shared by onnx-ir instead")
        return _shared(proto)
    return onnxoptimizer.optimize(proto)  # type: ignore[no-any-return,unused-ignore]


def _shared(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    graph = ir.serde.deserialize_model(proto)
    for one in (
        passes.IdentityEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        one(graph)
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


def _merge_casts(graph: ir.Model) -> int:
    """Cast(Cast(x, wide), to) becomes Cast(x, to), where `wide` holds every value of x exactly; returns how many did.

    Cast(Cast(x, narrow), to) becomes x, where x and `to` are of one floating-point type: the narrow type is what an exporter
    computes in, and no part of the model.
    """
    import onnx_ir as ir

    merged = 0
    for node in list(graph.graph.all_nodes()):
        if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
            continue
        first = node.inputs[0].producer()
        if first is None or first.op_type != "Cast" or first.domain or first.inputs[0] is None:
            continue
        source, between, to = first.inputs[0], first.attributes["to"].as_int(), node.attributes["to"].as_int()
        if source.dtype is None:
            continue
        if source.dtype == to and source.dtype.is_floating_point() and ir.DataType(between).is_floating_point():
            if not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
            else:
                node.replace_input_with(0, source)
            merged += 1
        elif _holds(source.dtype, between):
            node.replace_input_with(0, source)
            merged += 1
    return merged


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


def _merge_reshapes(graph: ir.Model) -> int:
    """Reshape(Reshape(x, any), [-1]) becomes Reshape(x, [-1]); returns how many did."""
    merged = 0
    for node in list(graph.graph.all_nodes()):
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
            continue
        first, shape = node.inputs[0].producer(), node.inputs[1].const_value
        if first is None or first.op_type != "Reshape" or first.domain or shape is None:
            continue
        if shape.numpy().tolist() == [-1] and _only_use(node.inputs[0]):
            node.replace_input_with(0, first.inputs[0])
            merged += 1
    return merged


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


def _take_multi_head_attention(graph: ir.Model, context: PassContext) -> int:
    from runner.passes.graph.standard_attention import take_multi_head_attention
    from runner.passes.graph.surgeons.io import infer_shapes

    infer_shapes(graph)  # shapes say where heads begin and end
    replaced = take_multi_head_attention(graph)
    context.say(f"{replaced} MultiHeadAttention in place of Attention")
    return replaced


def _skip_unread_tokens(graph: ir.Model, context: PassContext) -> int:
    from runner.passes.graph.read_tokens import skip_unread_tokens
    from runner.passes.graph.surgeons.io import infer_shapes

    infer_shapes(graph)
    moved = skip_unread_tokens(graph)
    context.say(
        "the last layer is computed for the token that is read alone" if moved else "all tokens of the last layer are read"
    )
    return moved


def _fold_attention_biases(graph: ir.Model, context: PassContext) -> int:
    from runner.passes.graph.attention_biases import fold_attention_biases

    folded = fold_attention_biases(graph)
    context.say(f"{folded} biases of keys and values are no longer added")
    return folded


def _align_wide_products(graph: ir.Model, context: PassContext) -> int:
    from runner.passes.graph.wide_products import align_wide_products

    changed = align_wide_products(graph)
    context.say(f"{changed} products of a width that suits matrix units")
    return changed


def _use_product_for_patches(graph: ir.Model, context: PassContext) -> int:
    from runner.passes.graph.patches import take_product_for_patches
    from runner.passes.graph.surgeons.io import infer_shapes

    infer_shapes(graph)
    replaced = take_product_for_patches(graph)
    context.say(f"{replaced} products in place of convolutions of patches")
    return replaced


def _declare_microsoft(graph: ir.Model) -> None:
    if any(node.domain == _MICROSOFT for node in graph.graph.all_nodes()):
        graph.opset_imports[_MICROSOFT] = 1
    for function in graph.functions.values():
        if any(node.domain == _MICROSOFT for node in function.all_nodes()):
            function.opset_imports[_MICROSOFT] = 1
            graph.opset_imports[_MICROSOFT] = 1


PASS = Pass(
    name="OnnxPeepholeOptimizer",
    summary="Cleans a graph up: folded constants, merged casts and reshapes, no dead nodes.",
    options=OnnxPeepholeOptimizerOptions,
    apply=optimize,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxscript", "onnx-ir", "onnx"),
    version=6,
)
