"""Grids of codes for the blocks of a weight matrix: where they lie, and the nearest code of each weight."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from runner.models.quantized_checkpoint import QuantizedMatrix, Scheme

Parts = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]

# Returns the scales and zeros, float32 [rows, blocks], of some rows float32 [rows, columns] whose columns fill whole blocks.
# The number says how many columns hold weights; what follows them is zero.
Fit = Callable[["torch.Tensor", Scheme, int], tuple["torch.Tensor", "torch.Tensor"]]

if TYPE_CHECKING:
    import torch

_SHARES = (1.0, 0.9, 0.8, 0.7)  # of a block's range, tried one after the other
_SHARES_BESIDE = (0.95, 1.05)  # of the best scale, tried with the zeros beside the nearest one
_ROWS = 8192  # given to a thread at a time at most
_LANES = 64  # columns that vectors of 512 bits take at a time
_AT_ONCE = 2**15  # weights worked on at a time: they stay in the cache, and PyTorch does not split them among threads


def over_rows(function: Callable[[torch.Tensor], Parts], weight: torch.Tensor, least: int = 1) -> Parts:
    """Returns what a function makes of the rows of a weight, a few of them at a time on every thread.

    PyTorch itself splits no operation meanwhile: they are so short that its threads would mostly wait for one another.

    Args:
        function: gets some rows, gives three tensors with as many rows.
        weight: [rows, columns]; `function` gets them in float32.
        least: rows that are worth a thread.
    """
    import torch

    def inferred(rows: torch.Tensor) -> Parts:
        with torch.inference_mode():  # holds for one thread only
            return function(rows.float())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            pieces = min(threads, max(1, weight.shape[0] // least))
            parts = list(pool.map(inferred, weight.detach().split(min(_ROWS, -(-weight.shape[0] // pieces)))))
    finally:
        torch.set_num_threads(threads)
    first, second, third = (torch.cat(one) for one in zip(*parts, strict=True))
    return first, second, third


def fit_grid(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and zeros, float32 [rows, groups], whose codes give back the weights with the least squared error.

    The range of a block is narrowed step by step, since its outermost weights need not be met exactly; then the scale becomes
    the one that fits the codes best in the sense of least squares. With 8 bits nothing is gained by that, and the whole range
    is taken.

    Args:
        weight: float32 [rows, columns].
        scheme: the columns are a multiple of its group size.
        importance: float32 [columns]; how much an error in a column weighs. All weigh the same by default.
    """
    import torch

    columns = weight.shape[1]
    weights = torch.ones(columns) if importance is None else importance
    across = weights.view(-1, scheme.group_size).T
    parts = [_fit_rows(part, scheme, across) for part in weight.split(max(1, _AT_ONCE // columns))]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def _fit_rows(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits the blocks of a few rows; importance is [group size, groups of a row]."""
    import torch

    rows = weight.shape[0]
    count = rows * importance.shape[1]
    blocks = in_lanes(weight.reshape(-1, scheme.group_size).T)  # [group size, blocks]: scales lie along what is contiguous
    weights = in_lanes(importance.repeat(1, rows))
    low, high = blocks.amin(0).clamp_(max=0), blocks.amax(0).clamp_(min=0)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = high * (-scheme.middle / (scheme.middle - 1))
    scales = ((high - low) / scheme.levels).clamp_(min=1e-8)
    zeros = (-low / scales).round_().clamp_(0, scheme.levels)
    if scheme.bits == 8:
        return scales[:count].view(rows, -1), zeros[:count].view(rows, -1)
    least = torch.full_like(low, torch.inf)
    whole, nearest = scales, zeros

    def attempt(scale: torch.Tensor, zero: torch.Tensor, refine: bool = False) -> None:
        nonlocal least, scales, zeros
        codes = torch.addcmul(zero, blocks, scale.reciprocal()).round_().clamp_(0, scheme.levels).sub_(zero)
        error = (codes * scale).sub_(blocks).square_().mul_(weights).sum(0)
        better = error < least
        least = torch.where(better, error, least)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
        if refine:
            weighted = codes * weights
            fitted = (weighted * blocks).sum(0) / weighted.mul_(codes).sum(0)
            attempt(torch.where(fitted > 0, fitted, scale), zero)  # nan where all codes are zero

    for share in _SHARES:
        attempt(whole * share, nearest)
    attempt(scales, zeros, refine=True)
    if not scheme.symmetric:
        best = scales
        for step in (-1, 1):
            for share in _SHARES_BESIDE:
                attempt(best * share, (nearest + step).clamp_(0, scheme.levels))
        attempt(scales, zeros, refine=True)
    return scales[:count].view(rows, -1), zeros[:count].view(rows, -1)


def in_lanes(columns: torch.Tensor) -> torch.Tensor:
    """Returns columns, [..., columns], with zeros behind them, contiguous.

    PyTorch adds up what is left over of its vectors in another order. With whole ones, what becomes of a column does not depend
    on how many stand beside it, nor on how many threads share a matrix.
    """
    import torch

    return torch.nn.functional.pad(columns, (0, -columns.shape[-1] % _LANES)).contiguous()


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedMatrix:
    """Returns a weight, [rows, columns] of any float type, with each value at the code nearest to it."""

    def nearest(rows: torch.Tensor) -> Parts:
        scales, zeros = fit_grid(rows, scheme)
        return nearest_codes(rows, scales, zeros, scheme.levels), scales, zeros

    codes, scales, zeros = over_rows(nearest, weight)
    return QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte())


def codes_on_grids(fit: Fit, rows: torch.Tensor, scheme: Scheme, columns: int, kept: torch.dtype) -> Parts:
    """Returns the codes, uint8 [rows, columns], nearest to some rows under the scales as they are stored, scales and zeros.

    Args:
        fit: finds the grids.
        rows: float32 [rows, columns]; zeros fill the last block.
        scheme: bits and block size.
        columns: how many columns hold weights.
        kept: the type that scales are stored in, and returned in.
    """
    scales, zeros = fit(rows, scheme, columns)
    scales = scales.to(kept)
    return nearest_codes(rows, scales.float(), zeros, scheme.levels), scales, zeros


def nearest_codes(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, levels: int) -> torch.Tensor:
    """Returns the codes, uint8 [rows, columns], nearest to the weights, for scales and zeros [rows, groups]."""
    import torch

    blocks = weight.reshape(*scales.shape, -1) / scales[..., None]
    return blocks.add_(zeros[..., None]).round_().clamp_(0, levels).to(torch.uint8).view(weight.shape)
