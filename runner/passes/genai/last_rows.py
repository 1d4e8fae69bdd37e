"""The last layer of a language model whose head is pruned: behind its attention only the last token is computed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from runner.models.generation import PRUNED

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")
_PRODUCTS = ("MatMul", "MatMulNBits")
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_ELEMENTWISE = ("Add", "Mul", "Sub", "Div", "Cast", "Sigmoid", "Tanh", "Gelu", "FastGelu", "QuickGelu")
_ROWS, _LAST_AXIS = 1, (-1, 2)


def keep_last_rows(path: Path) -> bool:
    """Moves the choice of the last token from in front of the head to right behind the last attention.

    What stands between them, most of a layer, then computes one row of a prompt. The numbers are the same.

    Args:
        path: a graph of the builder's, whose weights lie in a file of their own and are not read.

    Returns:
        Whether the graph was changed: not without a pruned head, nor where something between mixes tokens or is read elsewhere.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    named = {node.name: node for node in model.graph.node}
    gather, unsqueeze = named.get(f"{PRUNED}Gather"), named.get(f"{PRUNED}Unsqueeze")
    if gather is None or unsqueeze is None:
        return False
    varying = _varying(model.graph)
    between = _between(model.graph, gather, varying)
    entering = _entering(model.graph, between, varying)
    if not entering:
        return False
    _choose_earlier(model.graph, gather, unsqueeze, between, entering)
    onnx.save(model, path)
    return True


def _varying(graph: GraphProto) -> set[str]:
    """Returns the values that depend on an input of the graph; all others are weights, or made of weights."""
    varying = {one.name for one in graph.input}
    for node in graph.node:
        if varying.intersection(node.input):
            varying.update(filter(None, node.output))
    return varying


def _between(graph: GraphProto, gather: NodeProto, varying: set[str]) -> list[NodeProto]:
    """Returns the nodes from the last attention to the choice; none where not all of them give each row of that row alone."""
    attention = [node for node in graph.node if node.op_type in _ATTENTION]
    behind, found = {attention[-1].output[0]} if attention else set(), []
    for node in takewhile(lambda one: one.name != gather.name, graph.node):
        if behind.intersection(node.input):
            found.append(node)
            behind.update(filter(None, node.output))
    own, names = {name for node in found for name in node.output if name}, {gather.name, *(node.name for node in found)}
    read_elsewhere = {name for node in graph.node if node.name not in names for name in node.input}
    read_elsewhere.update(one.name for one in graph.output)
    whole = gather.input[0] in own and not own & read_elsewhere
    return found if whole and all(_row_by_row(node, varying) for node in found) else []


def _row_by_row(node: NodeProto, varying: set[str]) -> bool:
    if node.op_type in _PRODUCTS:
        return not varying.intersection(node.input[1:])
    if node.op_type in _NORMS:
        return all(one.i in _LAST_AXIS for one in node.attribute if one.name == "axis")
    return node.op_type in _ELEMENTWISE


def _entering(graph: GraphProto, between: Sequence[NodeProto], varying: set[str]) -> list[str]:
    """Returns the values [batch, tokens, width] that the nodes read of earlier ones; none where one has another shape."""
    own = {name for node in between for name in node.output}
    read = dict.fromkeys(name for node in between for name in node.input if name in varying and name not in own)
    axes = {one.name: one.type.tensor_type.shape.dim for one in graph.value_info}
    rows = {name for name in read if len(axes.get(name, ())) == 3 and axes[name][_ROWS].dim_param == "sequence_length"}
    return list(read) if rows == set(read) else []


def _choose_earlier(
    graph: GraphProto, gather: NodeProto, unsqueeze: NodeProto, between: Sequence[NodeProto], entering: Sequence[str]
) -> None:
    """Lets the nodes read chosen rows, and the head what they give."""
    from onnx import helper

    chosen, choosing = {}, []
    for at, value in enumerate(entering):
        name = f"{PRUNED}{at}/"
        chosen[value] = f"{name}Unsqueeze/output_0"
        choosing += [
            helper.make_node("Gather", [value, gather.input[1]], [f"{name}Gather/output_0"], f"{name}Gather", axis=_ROWS),
            helper.make_node("Unsqueeze", [f"{name}Gather/output_0", unsqueeze.input[1]], [chosen[value]], f"{name}Unsqueeze"),
        ]
    for node in between:
        node.input[:] = [chosen.get(name, name) for name in node.input]
    for node in graph.node:
        node.input[:] = [gather.input[0] if name == unsqueeze.output[0] else name for name in node.input]
    indices = (gather.input[1], unsqueeze.input[1])
    constants = [node for node in graph.node if node.output[0] in indices]
    gone = {gather.name, unsqueeze.name, *(node.name for node in constants)}
    others = [node for node in graph.node if node.name not in gone]
    first = next(at for at, node in enumerate(others) if node.name == between[0].name)
    ordered = [*constants, *others[:first], *choosing, *others[first:]]
    stale = {gather.output[0], unsqueeze.output[0], *(name for node in between for name in node.output)}
    described = [one for one in graph.value_info if one.name not in stale]
    nodes = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(nodes)
    values = [type(one).FromString(one.SerializeToString()) for one in described]
    del graph.value_info[:]
    graph.value_info.extend(values)
