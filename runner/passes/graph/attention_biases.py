"""Biases of keys and values taken out of MultiHeadAttention, where they cost a pass over the memory each and change nothing.

softmax(q (k + b)) = softmax(q k), since q b is the same for every key. The weights of a token sum to 1, so that a bias of the
values is added to the result as it is: the bias of the projection behind the attention can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.passes.graph.surgeons.editing import (
    MICROSOFT,
    Array,
    add_weight,
    constant_of,
    nodes_of,
    producer,
    prune,
    sole_consumer,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_KEY, _VALUE = 1, 2
_PLAIN_INPUTS = 3  # query, key, value; a bias of the projections, masks and caches come behind them
_BIAS_OF_SCORES = 5


@dataclass(frozen=True)
class _Biased:
    """An Add of a bias: the node, what it is added to, where the bias stands among its inputs, and the bias."""

    node: ir.Node
    source: ir.Value
    at: int
    bias: Array


def fold_attention_biases(model: ir.Model) -> int:
    """Drops the biases of keys, and moves those of values into the bias of the projection behind the attention.

    Returns:
        how many biases were taken out.
    """
    return sum(
        _without_key_bias(node) + _without_value_bias(node) for node in nodes_of(model, "MultiHeadAttention", domain=MICROSOFT)
    )


def _without_key_bias(attention: ir.Node) -> int:
    biased = _biased(attention.inputs[_KEY]) if _only_projections(attention) else None
    if biased is None:
        return 0
    attention.replace_input_with(_KEY, biased.source)
    prune(biased.node)
    return 1


def _without_value_bias(attention: ir.Node) -> int:
    biased = _biased(attention.inputs[_VALUE]) if _only_projections(attention) else None
    product = sole_consumer(attention.outputs[0], "MatMul")
    if biased is None or product is None or product.inputs[0] is not attention.outputs[0]:
        return 0
    weights, end = constant_of(product.inputs[1]), sole_consumer(product.outputs[0], "Add")
    behind = _biased(end.outputs[0]) if end is not None else None
    graph = attention.graph
    if weights is None or weights.ndim != 2 or behind is None or behind.source is not product.outputs[0] or graph is None:
        return 0
    moved = behind.bias.astype(np.float64) + biased.bias.astype(np.float64) @ weights.astype(np.float64)
    new = add_weight(graph, f"{attention.name}/bias", moved.astype(behind.bias.dtype))
    behind.node.replace_input_with(behind.at, new)
    attention.replace_input_with(_VALUE, biased.source)
    prune(biased.node)
    return 1


def _only_projections(attention: ir.Node) -> bool:
    """Says whether an attention reads query, key and value apart, and beside them at most numbers for the scores."""
    given = list(attention.inputs)
    others = [value for at, value in enumerate(given) if at >= _PLAIN_INPUTS and at != _BIAS_OF_SCORES and value is not None]
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
