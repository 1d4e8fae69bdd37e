"""Frozen weights held in four bits each and spread out again when they are used (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.utils import parametrize

BLOCK = 64  # weights that share one scale
SCALE_BLOCK = 256  # scales that share one scale of their own
# The quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (appendix E of the paper).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# Sign, two bits of exponent, one of mantissa, scaled to [-1, 1].
_FP4_POSITIVE = (0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
_CODEBOOKS = {"nf4": _NF4, "fp4": (*(-value for value in reversed(_FP4_POSITIVE)), *_FP4_POSITIVE)}

QuantType = Literal["nf4", "fp4"]


class FourBit(torch.nn.Module):  # type: ignore[misc]
    """A weight as codes of four bits and one scale for 64 of them; a parametrisation of `torch.nn.utils.parametrize`.

    Args:
        quant_type: the sixteen values: ``nf4``, quantiles of a normal distribution, or ``fp4``, small floating-point numbers.
        double_quant: hold the scales in eight bits as well.
        dtype: type that the weight is spread out to.
        shape: shape of the weight.
    """

    def __init__(self, quant_type: QuantType, double_quant: bool, dtype: torch.dtype, shape: torch.Size) -> None:
        super().__init__()
        self.double_quant, self.dtype, self.shape = double_quant, dtype, shape
        book = torch.tensor(_CODEBOOKS[quant_type])
        self.register_buffer("book", book, persistent=False)
        # Both values of every byte, so that spreading out is one lookup.
        byte = torch.arange(256)
        self.register_buffer("pairs", torch.stack((book[byte >> 4], book[byte & 15]), dim=1), persistent=False)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the bytes [ceil(weights / 128) * 64] and the scales; with double_quant codes, steps and the scales' mean."""
        blocks = _blocks(weight.float().flatten(), 2 * BLOCK).view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        middles = (self.book[1:] + self.book[:-1]) / 2
        codes = torch.bucketize(blocks / scales[:, None], middles).to(torch.uint8).view(-1, 2)
        packed = codes[:, 0] << 4 | codes[:, 1]
        return (packed, *(_rounded_scales(scales) if self.double_quant else (scales,)))

    def forward(self, packed: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
        """Returns the weight, spread out."""
        each = _spread_scales(*scales) if self.double_quant else scales[0]
        values = (
            torch.nn.functional.embedding(packed.int(), self.pairs).view(-1, BLOCK) * each[: packed.numel() * 2 // BLOCK, None]
        )
        return values.flatten()[: self.shape.numel()].view(self.shape).to(self.dtype)


def hold_in_four_bits(linear: torch.nn.Linear, quant_type: QuantType, double_quant: bool) -> None:
    """Replaces the frozen weight of a linear layer by its codes; reading it spreads them out."""
    weight = linear.weight
    parametrisation = FourBit(quant_type, double_quant, weight.dtype, weight.shape).to(weight.device)
    parametrize.register_parametrization(linear, "weight", parametrisation, unsafe=True)


def _blocks(flat: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def _rounded_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean = scales.mean()
    blocks = _blocks(scales - mean, SCALE_BLOCK)
    steps = blocks.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (blocks / steps[:, None]).round().to(torch.int8), steps, mean


def _spread_scales(codes: torch.Tensor, steps: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return (codes * steps[:, None]).flatten() + mean
