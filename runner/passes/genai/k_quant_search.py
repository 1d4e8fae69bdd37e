"""The search of k_quant over the ranges of each block, compiled by TorchScript.

It is a thousand small steps for some thousand blocks. Called one by one they hold Python's lock for a fifth of the time, and
many threads wait for one another; compiled they do not hold it at all, and take 0.6 of the processor time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

_Function = Callable[..., Any]


def _compiled(function: _Function) -> _Function:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.compile, named in its place, needs a compiler of C++
        compiled: _Function = torch.jit.script(function)
    return compiled


@_compiled
def _eight_sums(values: torch.Tensor) -> torch.Tensor:
    eight = values[:8].clone()
    for at in range(8, values.shape[0], 8):
        eight.add_(values[at : at + 8])
    four = eight[0::2] + eight[1::2]
    two = four[0::2] + four[1::2]
    return two[0] + two[1]


@_compiled
def total(values: torch.Tensor) -> torch.Tensor:
    """Returns the sums over the first axis, of 256 numbers at most, added up in numpy's order (pairwise_sum)."""
    if values.shape[0] > 128:
        half = values.shape[0] // 2
        return _eight_sums(values[:half]) + _eight_sums(values[half:])
    return _eight_sums(values)


@_compiled
def _weighted_error(
    codes: torch.Tensor,
    scale: torch.Tensor,
    least: torch.Tensor,
    data: torch.Tensor,
    weights: torch.Tensor,
    error: torch.Tensor,
) -> torch.Tensor:
    torch.mul(codes, scale, out=error)
    error.add_(least).sub_(data)
    torch.mul(error, error, out=error)
    return total(error.mul_(weights))


@_compiled
def search(data: torch.Tensor, weights: torch.Tensor, levels: float, ranges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and the codes of zero, [blocks], of blocks [block, blocks]: those with the least weighted error.

    Args:
        data: the numbers of the blocks.
        weights: what the square of each number's error counts.
        levels: the highest code.
        ranges: in how many steps a block's range is cut, tried one after the other; the first gives the grid to beat.
    """
    low, high = data.amin(0), data.amax(0)
    all_weights, all_data = total(weights), total(weights * data)
    codes, product, error = torch.empty_like(data), torch.empty_like(data), torch.empty_like(data)
    one = torch.ones_like(low)
    # A number over the range would be rounded twice.
    first = torch.where(low != high, ranges[0] / (high - low), one)
    scales = first.reciprocal()
    torch.sub(data, low, out=codes)
    codes.mul_(first).round_().clamp_(0, levels)
    best = _weighted_error(codes, scales, low, data, weights, error)
    for at in range(1, ranges.shape[0]):
        torch.sub(data, low, out=codes)
        codes.mul_(torch.where(low != high, ranges[at] / (high - low), one)).round_().clamp_(0, levels)
        torch.mul(weights, codes, out=product)
        sum_codes = total(product)
        torch.mul(product, data, out=error)
        sum_both = total(error)
        sum_squares = total(product.mul_(codes))
        determinant = all_weights * sum_squares - sum_codes * sum_codes
        scale = (all_weights * sum_both - all_data * sum_codes) / determinant
        least = (sum_squares * all_data - sum_codes * sum_both) / determinant
        tried = _weighted_error(codes, scale, least, data, weights, error)
        better = tried < best  # never where a block has one value only
        best = torch.where(better, tried, best)
        scales = torch.where(better, scale, scales)
        low = torch.where(better, least, low)
    return scales, (-low / scales).round_().clamp_(0, levels)
