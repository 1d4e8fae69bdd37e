"""ONNX's Attention on the heads of every token, as torch's exporter writes it, turned into ONNX Runtime's MultiHeadAttention.

On the CPU MultiHeadAttention works on blocks (flash attention) where no mask is given, reads [batch, tokens, width] without a
Transpose around each of its inputs, and is taken by every opset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.passes.graph.surgeons.editing import MICROSOFT, Rewrite, add_weight, constant_of, producer, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

_DIMENSIONS = 4  # batch, heads, tokens, width of a head
_TOKENS_FIRST = [0, 2, 1, 3]
_KEPT = {"scale", "is_causal"}
_NEUTRAL = {"softcap": 0.0, "qk_matmul_output_mode": 0, "softmax_precision": 1}  # what changes nothing in fp32
_QUERY, _KEY, _VALUE, _MASK = range(4)


@dataclass(frozen=True)
class _Found:
    """An Attention that can be written so: its inputs [batch, tokens, width], heads, mask, and the node that ends it."""

    inputs: tuple[ir.Value, ir.Value, ir.Value]
    heads: int
    mask: ir.Value | None
    end: ir.Value


def take_multi_head_attention(model: ir.Model) -> int:
    """Replaces every Attention of ONNX that has as many key heads as query heads, no cache, and a Transpose around its heads.

    A mask that lets everything through is dropped; another becomes the numbers that are added to the scores. Shapes must have
    been inferred.

    Returns:
        how many were replaced.
    """
    biases: dict[ir.Value, ir.Value] = {}
    replaced = 0
    for node in [one for one in model.graph if one.op_type == "Attention" and not one.domain]:
        found = _found(node)
        if found is None:
            continue
        rewrite = Rewrite(found.end)
        bias = _bias(found.mask, biases) if found.mask is not None else None
        given = [*found.inputs, *([None, None, bias] if bias is not None else [])]
        attributes = {"num_heads": found.heads}
        if (scale := node.attributes.get("scale")) is not None:
            attributes["scale"] = scale.as_float()
        if (causal := node.attributes.get("is_causal")) is not None and causal.as_int():
            attributes["unidirectional"] = 1
        rewrite.finish(rewrite.op("MultiHeadAttention", *given, domain=MICROSOFT, **attributes))
        replaced += 1
    if replaced:
        model.opset_imports[MICROSOFT] = 1
    return replaced


def _found(node: ir.Node) -> _Found | None:
    others = [name for name, one in node.attributes.items() if name not in _KEPT and one.value != _NEUTRAL.get(name)]
    read = [one for one in node.outputs[1:] if one.uses() or one.is_graph_output()]
    if others or read or any(value is not None for value in node.inputs[_MASK + 1 :]):
        return None
    inputs = [_before_heads(value) for value in node.inputs[:_MASK]]
    query, key, value = inputs
    if query is None or key is None or value is None:
        return None
    heads = {_axis(one, 1) for one in node.inputs[:_MASK]}
    end = _behind_heads(node.outputs[0])
    number = heads.pop()
    if heads or number is None or end is None:
        return None
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    mask = None if mask is None or _lets_all_through(mask) else mask
    return _Found((query, key, value), number, mask, end) if mask is None or _is_for_all_pairs(mask) else None


def _axis(value: ir.Value | None, at: int) -> int | None:
    """Returns the size of an axis; None where it is free or unknown."""
    if value is None or value.shape is None or len(value.shape) != _DIMENSIONS:
        return None
    size = value.shape[at]
    return size if isinstance(size, int) else None


def _before_heads(value: ir.Value | None) -> ir.Value | None:
    """Returns [batch, tokens, width], of which `value` is the heads: [batch, heads, tokens, width of a head]."""
    turned = producer(value, "Transpose")
    if turned is None or list(turned.attributes["perm"].as_ints()) != _TOKENS_FIRST:
        return None
    split = producer(turned.inputs[0], "Reshape")
    source = split.inputs[0] if split is not None else None
    if source is None or source.shape is None or len(source.shape) != _DIMENSIONS - 1:
        return None
    heads, size = _axis(value, 1), _axis(value, 3)
    return source if heads and size and source.shape[2] == heads * size else None


def _behind_heads(value: ir.Value) -> ir.Value | None:
    """Returns [batch, tokens, width], which is made of the heads and nothing else."""
    turned = sole_consumer(value, "Transpose")
    if turned is None or list(turned.attributes["perm"].as_ints()) != _TOKENS_FIRST:
        return None
    joined = sole_consumer(turned.outputs[0], "Reshape")
    heads, size = _axis(value, 1), _axis(value, 3)
    if joined is None or joined.outputs[0].shape is None or heads is None or size is None:
        return None
    shape = joined.outputs[0].shape
    return joined.outputs[0] if len(shape) == _DIMENSIONS - 1 and shape[2] == heads * size else None


def _lets_all_through(mask: ir.Value) -> bool:
    """Says whether a mask is True, or adds 0, everywhere, whatever its size."""
    while (spread := producer(mask, "Expand", "Identity")) is not None and spread.inputs[0] is not None:
        mask = spread.inputs[0]
    content = constant_of(mask)
    if content is None:
        return False
    return bool(content.all()) if content.dtype == np.bool_ else not content.any()


def _is_for_all_pairs(mask: ir.Value) -> bool:
    """Says whether a mask has an entry for each pair of tokens, as MultiHeadAttention wants it: [batch, heads, T, T]."""
    return mask.shape is not None and len(mask.shape) == _DIMENSIONS and mask.shape[2] != 1 and mask.shape[3] != 1


def _bias(mask: ir.Value, known: dict[ir.Value, ir.Value]) -> ir.Value:
    """Returns what is added to the scores for a mask: 0, or a number so low that its exponential is 0."""
    import onnx_ir as ir

    if mask.dtype != ir.DataType.BOOL:
        return mask
    if mask not in known:
        node = mask.producer()
        graph = node.graph if node is not None else mask.graph
        assert isinstance(graph, ir.Graph)
        low = float(np.finfo(np.float32).min) / 2  # a row without any token stays finite
        allowed, forbidden = (add_weight(graph, f"{mask.name}/{n}", np.float32(v)) for n, v in (("in", 0.0), ("out", low)))
        new = ir.node("Where", [mask, allowed, forbidden], name=f"{mask.name}/bias")
        new.outputs[0].shape, new.outputs[0].type = mask.shape, ir.TensorType(ir.DataType.FLOAT)
        if node is not None:
            graph.insert_after(node, new)
        else:
            graph.insert_before(graph[0], new)
        known[mask] = new.outputs[0]
    return known[mask]
