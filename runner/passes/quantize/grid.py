"""Grids of codes for the blocks of a weight matrix: where they lie, and the nearest code of each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from runner.models.quantized_checkpoint import Scheme

_SHRINKINGS = 16  # ranges tried, from the whole one down to half of it
_AT_ONCE = 2**17  # weights worked on at a time, so that they stay in the processor's cache


def fit_grid(
    weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and zeros, float32 [rows, groups], whose codes give back the weights with the least squared error.

    The range of a block is narrowed step by step, since its outermost weights need not be met exactly. With 8 bits nothing is
    gained by that, and the whole range is taken.

    Args:
        weight: float32 [rows, columns].
        scheme: the columns are a multiple of its group size.
        importance: float32 [columns]; how much an error in a column weighs. All weigh the same by default.
    """
    import torch

    rows, columns = weight.shape
    weights = torch.ones(columns) if importance is None else importance
    per = max(1, _AT_ONCE // columns)
    parts = [_fit_rows(part, scheme, weights.view(1, -1, scheme.group_size)) for part in weight.split(per)]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def _fit_rows(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    blocks = weight.reshape(weight.shape[0], -1, scheme.group_size)
    low, high = blocks.amin(-1).clamp_(max=0), blocks.amax(-1).clamp_(min=0)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low, high = -high * scheme.middle / (scheme.middle - 1), high
    least = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for step in range(_SHRINKINGS if scheme.bits < 8 else 1):
        share = 1 - 0.5 * step / _SHRINKINGS
        scale = ((high - low) * (share / scheme.levels)).clamp_(min=1e-8)
        nearest = (-low * share / scale).round_()
        for zero in (nearest,) if scheme.symmetric or scheme.bits == 8 else (nearest - 1, nearest, nearest + 1):
            zero = zero.clamp_(0, scheme.levels)
            back = (blocks / scale[..., None]).add_(zero[..., None]).round_().clamp_(0, scheme.levels)
            back.sub_(zero[..., None]).mul_(scale[..., None]).sub_(blocks)
            error = back.square_().mul_(importance).sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return scales, zeros


def nearest_codes(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, levels: int) -> torch.Tensor:
    """Returns the codes, uint8 [rows, columns], nearest to the weights, for scales and zeros [rows, groups]."""
    import torch

    blocks = weight.reshape(*scales.shape, -1) / scales[..., None]
    return blocks.add_(zeros[..., None]).round_().clamp_(0, levels).to(torch.uint8).view(weight.shape)
