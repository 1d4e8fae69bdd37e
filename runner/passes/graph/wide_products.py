"""Products whose width does not suit the matrix units of a GPU, such as the logits over a vocabulary of 30,522 words.

Rows of half precision that do not begin at a multiple of 16 bytes keep cuBLAS from its fast kernels. At the next multiple of 64
the product is fast, and what is too much is cut off behind it. The bias is one row of weights more, which a column of ones
meets, so that no pass over the memory is needed for it: products are summed in fp32, and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runner.passes.graph.surgeons.editing import Rewrite, constant_of, nodes_of, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

_WIDE = 1024
_ALIGNED = 8  # numbers of half precision, which are 16 bytes
_TILE = 64


def align_wide_products(model: ir.Model) -> int:
    """Computes every wide product in half precision at a multiple of 64, where its width is no multiple of 8.

    Returns:
        how many were changed.
    """
    changed = 0
    for node in nodes_of(model, "MatMul", domain=""):
        weights, rows = constant_of(node.inputs[1]), _dimensions(node)
        if weights is None or weights.ndim != 2 or weights.dtype != np.float16 or rows is None:
            continue
        width = weights.shape[1]
        if width >= _WIDE and width % _ALIGNED and weights.shape[0] % _ALIGNED == 0:
            _align(node, weights, rows)
            changed += 1
    return changed


def _dimensions(node: ir.Node) -> int | None:
    """Returns how many dimensions a product has, where a value behind it or before it tells."""
    for value in (node.inputs[0], node.outputs[0]):
        if value is not None and value.shape is not None:
            return len(value.shape)
    behind = [use.node for use in node.outputs[0].uses()]
    while behind:  # sums with a bias and casts keep the dimensions
        one = behind.pop()
        if one.op_type in ("Add", "Cast"):
            if one.outputs[0].shape is not None:
                return len(one.outputs[0].shape)
            behind.extend(use.node for use in one.outputs[0].uses())
    return None


def _align(node: ir.Node, weights: np.ndarray[tuple[int, int], np.dtype[np.float16]], dimensions: int) -> None:
    inner, width = weights.shape
    added = sole_consumer(node.outputs[0], "Add")
    bias = next((one for one in map(constant_of, added.inputs) if one is not None), None) if added is not None else None
    if bias is not None and bias.shape != (width,):
        bias = None
    end = added.outputs[0] if added is not None and bias is not None else node.outputs[0]
    rewrite = Rewrite(end)
    padded = np.zeros((inner + (0 if bias is None else _ALIGNED), -(-width // _TILE) * _TILE), weights.dtype)
    padded[:inner, :width] = weights
    given = node.inputs[0]
    if bias is not None:
        padded[inner, :width] = bias
        behind = [0] * (2 * dimensions - 1) + [_ALIGNED]
        given = rewrite.op("Pad", given, rewrite.integers(*behind), rewrite.constant(1, weights.dtype))
    product = rewrite.op("MatMul", given, rewrite.constant(padded, label="weights"))
    rewrite.finish(rewrite.op("Slice", product, rewrite.integers(0), rewrite.integers(width), rewrite.integers(-1)))
