"""HQQ: grids of an ONNX graph's weights that leave the small errors small and let outliers be outliers.

After H. Badri, A. Shaji: Half-quadratic quantization of large machine learning models (2023). The error of a block is measured
with a norm below 1 and split off by a shrinkage; what remains gives the grid in closed form. The original moves a zero between
codes. ONNX Runtime's kernels for such zeros took 85 times as long as those for whole ones (1.32, CPU, one row of 2048 x 2048),
so zeros are whole here and the steps of the grid are fitted in their place, beginning with those of least squares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.block_quantization import BlockOptions, Blocks, BlockSize, nearest, quantize_blocks
from runner.passes.quantize.grid import fit_grid, in_lanes

if TYPE_CHECKING:
    import torch

_NORM = 0.7
_PENALTY, _GROWTH = 10.0, 1.01  # of the split-off error, in steps of the grid; more with each round
_ROUNDS = 10
_AT_ONCE = 2**15  # weights worked on at a time: they stay in the cache


class OnnxHqqQuantizationOptions(BlockOptions):
    """Options of OnnxHqqQuantization."""

    block_size: BlockSize = Field(128, description="weights that share one scale")
    nodes_to_include: list[str] | None = Field(None, description="quantise only these nodes; a name or a pattern")


def fit(rows: torch.Tensor, scheme: Scheme, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and zeros, float32 [rows, blocks], with the least mean error in the norm of HQQ.

    Args:
        rows: float32 [rows, columns and padding].
        scheme: bits and block size.
        columns: columns before the padding; zero has a code, so that padding adds no error.
    """
    import torch

    scales, zeros = fit_grid(rows, scheme)
    size = max(1, _AT_ONCE // rows.shape[1])
    parts = [_refine(*given, scheme) for given in zip(rows.split(size), scales.split(size), zeros.split(size), strict=True)]
    return torch.cat(parts), zeros


def _refine(rows: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Returns better scales for the blocks of a few rows."""
    import torch

    blocks = in_lanes(rows.reshape(-1, scheme.group_size).T)  # [group size, blocks]: scales lie along what is contiguous
    step, zero = in_lanes(scales.reshape(-1)).clamp_(min=1e-8), in_lanes(zeros.reshape(-1))
    least = torch.full_like(step, torch.inf)
    best, penalty = step, _PENALTY
    for _ in range(_ROUNDS):
        scaled = blocks / step
        codes = (scaled + zero).round_().clamp_(0, scheme.levels).sub_(zero)
        error = scaled - codes
        total = error.abs().pow_(_NORM).sum(0) * step**_NORM
        better = total < least
        least = torch.where(better, total, least)
        best = torch.where(better, step, best)
        near = scaled.sub_(_shrunk(error, penalty))
        length = codes.square().sum(0)
        step = step * torch.where(length > 0, (codes * near).sum(0) / length.clamp(min=1e-30), 1.0).clamp_(0.5, 2.0)
        penalty *= _GROWTH
    return best[: scales.numel()].view(scales.shape)


def _shrunk(error: torch.Tensor, penalty: float) -> torch.Tensor:
    """Returns the part of the error that is split off: the generalised soft threshold of the norm."""
    size = error.abs()
    return (size - (size + 1e-8).pow_(_NORM - 1).div_(penalty)).clamp_(min=0).mul_(error.sign())


def _apply(model: ModelHandle, options: OnnxHqqQuantizationOptions, context: PassContext) -> ModelHandle:
    blocks = Blocks(
        nearest(fit),
        Scheme(4, options.block_size, symmetric=False),
        ("MatMul",),
        options.level(context.target.name),
        tuple(options.nodes_to_include or ()),
        tuple(options.nodes_to_exclude or ()),
    )
    return quantize_blocks(model, blocks, options, context)


PASS = Pass(
    name="OnnxHqqQuantization",
    summary="Quantises the weights of products to 4 bits, block by block, with half-quadratic optimisation; needs no data.",
    options=OnnxHqqQuantizationOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("torch", "onnx"),
    version=3,
)
