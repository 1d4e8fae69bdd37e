"""Biases of keys and values taken out of MultiHeadAttention, where they cost a pass over the memory each and change nothing.

softmax(q (k + b)) = softmax(q k), since q b is the same for every key. The weights of a token sum to 1, so that a bias of the
values is added to the result as it is: the bias of the projection behind the attention can hold it, be it an Add or part of
SkipLayerNormalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.passes.graph.surgeons.editing import (
    MICROSOFT,
    Array,
    add_weight,
    constant_of,
    drop_if_unread,
    nodes_of,
    producer,
    prune,
    sole_consumer,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_KEY, _VALUE = 1, 2
_PLAIN_INPUTS = 3  # query, key, value; a bias of the projections, masks and caches come behind them
_BIAS, _BIAS_OF_SCORES = 3, 5
_BIAS_OF_NORMALIZATION = 4  # the input of SkipLayerNormalization


@dataclass(frozen=True)
class _Biased:
    """An Add of a bias: the node, what it is added to, where the bias stands among its inputs, and the bias."""

    node: ir.Node
    source: ir.Value
    at: int
    bias: Array


@dataclass(frozen=True)
class _Holder:
    """A node that adds a bias to a projection: the node, where the bias stands among its inputs, the bias, the weights."""

    node: ir.Node
    at: int
    bias: Array
    weights: Array


def fold_attention_biases(model: ir.Model) -> int:
    """Drops the biases of keys, and moves those of values into the bias of the projection behind the attention.

    Returns:
        how many biases were taken out.
    """
    attentions = nodes_of(model, "MultiHeadAttention", domain=MICROSOFT)
    for node in attentions:
        _take_bias_out(node)
    return sum(_without_key_bias(node) + _without_value_bias(node) for node in attentions)


def _take_bias_out(attention: ir.Node) -> None:
    """Lets Add nodes add the biases of the projections, where the attention does it and that of values can go elsewhere."""
    import onnx_ir as ir

    given = list(attention.inputs)
    bias = constant_of(given[_BIAS]) if len(given) > _BIAS else None
    widths: list[Any] = [_width(one) for one in given[:_PLAIN_INPUTS]]
    graph = attention.graph
    if bias is None or None in widths or not _only_projections(attention, _BIAS) or _holder(attention) is None or graph is None:
        return
    attention.replace_input_with(_BIAS, None)
    for at, part in enumerate(np.split(bias, np.cumsum(widths)[:-1])):
        source = given[at]
        if part.any() and source is not None:
            weight = add_weight(graph, f"{attention.name}/bias_{at}", part)
            new = ir.node("Add", [source, weight], name=f"{attention.name}/biased_{at}")
            new.outputs[0].shape, new.outputs[0].type = source.shape, source.type
            graph.insert_before(attention, new)
            attention.replace_input_with(at, new.outputs[0])
    if (spent := given[_BIAS]) is not None:
        drop_if_unread(spent)


def _width(value: ir.Value | None) -> int | None:
    """Returns how wide the product that makes a value is; None where it is none with fixed weights."""
    product = producer(value, "MatMul")
    weights = constant_of(product.inputs[1]) if product is not None else None
    return weights.shape[1] if weights is not None and weights.ndim == 2 else None


def _without_key_bias(attention: ir.Node) -> int:
    biased = _biased(attention.inputs[_KEY]) if _only_projections(attention) else None
    if biased is None:
        return 0
    attention.replace_input_with(_KEY, biased.source)
    prune(biased.node)
    return 1


def _without_value_bias(attention: ir.Node) -> int:
    biased = _biased(attention.inputs[_VALUE]) if _only_projections(attention) else None
    holder = _holder(attention)
    if biased is None or holder is None or attention.graph is None:
        return 0
    moved = holder.bias.astype(np.float64) + biased.bias.astype(np.float64) @ holder.weights.astype(np.float64)
    old = holder.node.inputs[holder.at]
    new = add_weight(attention.graph, f"{attention.name}/bias", moved.astype(holder.bias.dtype))
    holder.node.replace_input_with(holder.at, new)
    if old is not None:
        drop_if_unread(old)
    attention.replace_input_with(_VALUE, biased.source)
    prune(biased.node)
    return 1


def _holder(attention: ir.Node) -> _Holder | None:
    """Returns what adds a bias to the projection of an attention's result, where nothing else reads either."""
    product = sole_consumer(attention.outputs[0], "MatMul")
    weights = constant_of(product.inputs[1]) if product is not None else None
    if product is None or product.inputs[0] is not attention.outputs[0] or weights is None or weights.ndim != 2:
        return None
    end = sole_consumer(product.outputs[0], "Add", "SkipLayerNormalization")
    if end is None:
        return None
    if end.op_type == "Add":
        behind = _biased(end.outputs[0])
        return _Holder(end, behind.at, behind.bias, weights) if behind and behind.source is product.outputs[0] else None
    bias = constant_of(end.inputs[_BIAS_OF_NORMALIZATION]) if len(end.inputs) > _BIAS_OF_NORMALIZATION else None
    return _Holder(end, _BIAS_OF_NORMALIZATION, bias, weights) if bias is not None else None


def _only_projections(attention: ir.Node, *further: int) -> bool:
    """Says whether an attention reads query, key and value apart, and beside them at most numbers for the scores.

    `further` are the places of other inputs that it may read.
    """
    given = list(attention.inputs)
    allowed = (*range(_PLAIN_INPUTS), _BIAS_OF_SCORES, *further)
    others = [value for at, value in enumerate(given) if at not in allowed and value is not None]
    return len(given) >= _PLAIN_INPUTS and None not in given[:_PLAIN_INPUTS] and not others and len(attention.outputs) == 1


def _biased(value: ir.Value | None) -> _Biased | None:
    """Returns the Add that made a value, where it adds one number for each of its columns."""
    node = producer(value, "Add")
    if node is None:
        return None
    for at, given in enumerate(node.inputs):
        bias, source = constant_of(given), node.inputs[1 - at]
        if bias is not None and bias.ndim == 1 and source is not None and constant_of(source) is None:
            return _Biased(node, source, at, bias)
    return None
