"""k-quant: grids of an ONNX graph's weights by weighted least squares.

The search is that of llama.cpp's k-quants (`make_qkx2_quants`): ranges around a block's own are tried, and for the codes that
each gives, the scale with the least weighted error follows in closed form. A weight counts by its size and the block's mean
size. MatMulNBits stores a zero as a code, so here the error is that with the rounded zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.block_quantization import BlockOptions, Blocks, BlockSize, WeightBits, nearest, quantize_blocks
from runner.recipe.config import Model

if TYPE_CHECKING:
    import torch

_RANGES = tuple(
    -1 + 0.5 * step for step in range(13)
)  # steps that a block's range is cut into, more or less than there are codes
_AT_ONCE = 2**15  # weights worked on at a time: they stay in the cache


class NodeScheme(Model):
    """What is different for one node; None leaves what holds for the others."""

    bits: WeightBits | None = None
    group_size: BlockSize | None = None


class OnnxKQuantQuantizationOptions(BlockOptions):
    """Options of OnnxKQuantQuantization."""

    bits: WeightBits = Field(4, description="bits of a weight")
    block_size: BlockSize = Field(32, description="weights that share one scale")
    customized_weight_config: dict[str, NodeScheme] | None = Field(
        None,
        description="bits and group_size of single nodes, by name or pattern; the first that means a node holds",
    )


def fit(rows: torch.Tensor, scheme: Scheme, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and zeros, float32 [rows, blocks], with the least weighted error.

    Args:
        rows: float32 [rows, columns and padding].
        scheme: bits and block size.
        columns: columns before the padding, which does not count.
    """
    import torch

    counts = columns > torch.arange(rows.shape[1]).view(-1, scheme.group_size).T
    parts = [_fit_rows(part, scheme, counts) for part in rows.split(max(1, _AT_ONCE // rows.shape[1]))]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def _fit_rows(rows: torch.Tensor, scheme: Scheme, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits the blocks of a few rows; counts [group size, blocks of a row] says which weights are no padding."""
    import torch

    blocks = rows.reshape(-1, scheme.group_size).T.contiguous()  # [group size, blocks]: scales lie along what is contiguous
    real = counts.repeat(1, len(rows)).float()
    mean = blocks.square().sum(0).div_(real.sum(0).clamp_(min=1)).sqrt_()
    weights = blocks.abs().add_(mean).mul_(real)
    low, high = blocks.amin(0).clamp_(max=0), blocks.amax(0).clamp_(min=0)
    reach = (high - low).clamp_(min=1e-8)
    least = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for more in _RANGES if scheme.bits < 8 else (0.0,):
        step = reach / (scheme.levels + more)
        zero = (-low / step).round_().clamp_(0, scheme.levels)
        for _ in range(2):
            steps = torch.addcmul(zero, blocks, step.reciprocal()).round_().clamp_(0, scheme.levels).sub_(zero)
            weighted = steps * weights
            length = (weighted * steps).sum(0)
            step = torch.where(length > 0, (weighted * blocks).sum(0) / length.clamp(min=1e-30), step).clamp_(min=1e-10)
        error = (steps.mul_(step).sub_(blocks)).square_().mul_(weights).sum(0)
        better = error < least
        least = torch.where(better, error, least)
        scales, zeros = torch.where(better, step, scales), torch.where(better, zero, zeros)
    return scales.view(len(rows), -1), zeros.view(len(rows), -1)


def _apply(model: ModelHandle, options: OnnxKQuantQuantizationOptions, context: PassContext) -> ModelHandle:
    scheme = Scheme(options.bits, options.block_size, symmetric=False)
    own = {
        name: replace(scheme, **given.model_dump(exclude_none=True))
        for name, given in (options.customized_weight_config or {}).items()
    }
    level, excluded = options.level(context.target.name), tuple(options.nodes_to_exclude or ())
    return quantize_blocks(model, Blocks(nearest(fit), scheme, ("MatMul",), level, (), excluded, own), options, context)


PASS = Pass(
    name="OnnxKQuantQuantization",
    summary="Quantises the weights of products to 4 or 8 bits, block by block, by weighted least squares; needs no data.",
    options=OnnxKQuantQuantizationOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("torch", "onnx"),
)
