"""Weights of an ONNX graph rounded to the nearest code of their block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.block_quantization import BlockOptions, Blocks, BlockSize, WeightBits, nearest, quantize_blocks
from runner.passes.quantize.grid import fit_grid

if TYPE_CHECKING:
    import torch


class OnnxBlockWiseRtnQuantizationOptions(BlockOptions):
    """Options of OnnxBlockWiseRtnQuantization."""

    bits: WeightBits = Field(4, description="bits of a weight")
    block_size: BlockSize = Field(128, description="weights that share one scale")
    is_symmetric: bool = Field(True, description="quantise without zero points")
    nodes_to_include: list[str] | None = Field(None, description="quantise only these nodes; a name or a pattern")


def fit(rows: torch.Tensor, scheme: Scheme, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the grids with the least squared error; padding takes any code."""
    return fit_grid(rows, scheme)


def _apply(model: ModelHandle, options: OnnxBlockWiseRtnQuantizationOptions, context: PassContext) -> ModelHandle:
    blocks = Blocks(
        nearest(fit),
        Scheme(options.bits, options.block_size, options.is_symmetric),
        ("MatMul", "Gather"),
        options.level(context.target.name),
        tuple(options.nodes_to_include or ()),
        tuple(options.nodes_to_exclude or ()),
    )
    return quantize_blocks(model, blocks, options, context)


PASS = Pass(
    name="OnnxBlockWiseRtnQuantization",
    summary="Rounds the weights of products and embeddings to the nearest of 4 or 8 bits, block by block; needs no data.",
    options=OnnxBlockWiseRtnQuantizationOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("torch", "onnx"),
    version=3,
)
