"""Patches of a picture embedded by a product: a convolution of windows that lie side by side multiplies each by the weights.

cuDNN has no fast kernel for such windows (16 x 16 pixels of 3 colours), and copies to and from its layout of channels come on
top. Behind the product a class token and the bias are part of what is added for the place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.passes.graph.surgeons.editing import Array, Rewrite, constant_of, nodes_of, producer, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

_PICTURE = 4  # dimensions: batch, channels, height, width
_TOKENS_LAST_TO_WIDTH = [0, 2, 1]  # [batch, width, tokens] to [batch, tokens, width]
_WINDOWS_FIRST = [0, 2, 4, 1, 3, 5]  # [batch, channels, rows, y, columns, x] to [batch, rows, columns, channels, y, x]


@dataclass(frozen=True)
class _Patches:
    """A convolution of windows side by side, and the value [batch, windows, width] that is made of it."""

    picture: ir.Value
    channels: int
    rows: int
    columns: int
    size: tuple[int, int]
    weights: Array
    bias: Array
    tokens: ir.Value

    @property
    def number(self) -> int:
        return self.rows * self.columns


def take_product_for_patches(model: ir.Model) -> int:
    """Replaces every convolution of windows that lie side by side and become tokens. Shapes must have been inferred.

    Where a constant token goes before them and numbers are added for each place, that token is part of the sum.

    Returns:
        how many were replaced.
    """
    replaced = 0
    for node in nodes_of(model, "Conv", domain=""):
        patches = _patches(node)
        if patches is not None:
            _replace(patches)
            replaced += 1
    return replaced


def _patches(node: ir.Node) -> _Patches | None:
    weights = constant_of(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_of(given) if given is not None else np.zeros(1, np.float32)
    picture = node.inputs[0]
    if weights is None or weights.ndim != _PICTURE or bias is None or picture is None or picture.shape is None:
        return None
    size = (weights.shape[2], weights.shape[3])
    sides = list(picture.shape)[1:]
    if not all(isinstance(side, int) for side in sides) or len(sides) != _PICTURE - 1 or not _side_by_side(node, size):
        return None
    channels, height, width = (int(side) for side in sides)
    tokens = _tokens(node, weights.shape[0])
    if tokens is None or channels != weights.shape[1] or height % size[0] or width % size[1]:
        return None
    return _Patches(picture, channels, height // size[0], width // size[1], size, weights, bias, tokens)


def _side_by_side(node: ir.Node, size: tuple[int, int]) -> bool:
    """Says whether a convolution steps by the size of its windows, without padding, dilation or groups."""
    told = {name: one.value for name, one in node.attributes.items()}
    return (
        list(told.get("strides", [1, 1])) == list(size)
        and not any(told.get("pads", [0]))
        and all(one == 1 for one in told.get("dilations", [1]))
        and told.get("group", 1) == 1
        and told.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _tokens(node: ir.Node, width: int) -> ir.Value | None:
    """Returns the value [batch, windows, width] that is made of a convolution's output, and of which nothing else is."""
    flat = sole_consumer(node.outputs[0], "Reshape")
    turned = sole_consumer(flat.outputs[0], "Transpose") if flat is not None else None
    if flat is None or turned is None or list(turned.attributes["perm"].as_ints()) != _TOKENS_LAST_TO_WIDTH:
        return None
    shape = flat.outputs[0].shape
    return turned.outputs[0] if shape is not None and len(shape) == 3 and shape[1] == width else None


def _replace(patches: _Patches) -> None:
    found = _with_first_token(patches)
    end, added, first = found or (patches.tokens, np.zeros((1, patches.number, 1), np.float32), None)
    rewrite = Rewrite(end)
    (y, x), width = patches.size, patches.weights.shape[0]
    windows = rewrite.op(
        "Transpose",
        rewrite.op("Reshape", patches.picture, rewrite.integers(0, patches.channels, patches.rows, y, patches.columns, x)),
        perm=_WINDOWS_FIRST,
    )
    flat = rewrite.op("Reshape", windows, rewrite.integers(0, patches.number, patches.channels * y * x))
    made = rewrite.op("MatMul", flat, rewrite.constant(patches.weights.reshape(width, -1).T, label="weights"))
    sums = np.broadcast_to(added, (1, patches.number + (first is not None), width)).astype(patches.weights.dtype)
    if first is not None:
        made = rewrite.op("Pad", made, rewrite.integers(0, 1, 0, 0, 0, 0))
        sums[:, :1] += first
    sums[:, sums.shape[1] - patches.number :] += patches.bias
    rewrite.finish(rewrite.op("Add", made, rewrite.constant(sums, label="places")))


def _with_first_token(patches: _Patches) -> tuple[ir.Value, Array, Array] | None:
    """Returns the sum of tokens and places, what is added for each place, and the constant token that goes first."""
    joined = sole_consumer(patches.tokens, "Concat")
    total = sole_consumer(joined.outputs[0], "Add") if joined is not None else None
    if joined is None or total is None or joined.attributes["axis"].as_int() != 1 or len(joined.inputs) != 2:
        return None
    spread = producer(joined.inputs[0], "Expand")
    first = constant_of(spread.inputs[0] if spread is not None else joined.inputs[0])
    added = constant_of(total.inputs[0] if total.inputs[1] is joined.outputs[0] else total.inputs[1])
    shape = (1, patches.number + 1, patches.weights.shape[0])
    if joined.inputs[1] is not patches.tokens or first is None or added is None or added.shape != shape:
        return None
    return (total.outputs[0], added, first) if first.shape == (1, 1, shape[2]) else None
