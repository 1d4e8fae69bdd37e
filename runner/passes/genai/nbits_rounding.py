"""Rounding to nearest as ONNX Runtime does it for MatMulNBits, bit for bit, on rows as a checkpoint holds them.

`quantize_matmul_4bits` and `quantize_matmul_8bits` of ONNX Runtime want a weight transposed; turning it takes longer than all
the rest. The arithmetic is that of its `BlockwiseQuantizer` (core/mlas/lib/q4_dq.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.models.quantized_checkpoint import pack

if TYPE_CHECKING:
    import numpy as np
    import torch

Parts = Sequence["np.ndarray[Any, Any]"]  # codes, scales and zero points of some rows, as MatMulNBits takes them
Quantise = Callable[["torch.Tensor"], Parts]


def rounding_of(method: str, bits: int, block: int, symmetric: bool) -> Quantise | None:
    """Returns what quantises rows to codes, scales and zero points as ONNX Runtime does; None for other methods."""
    if method == "default" and bits in (4, 8):
        return partial(_default, bits=bits, block=block, symmetric=symmetric)
    return None


def _default(rows: torch.Tensor, bits: int, block: int, symmetric: bool) -> Parts:
    """Returns the parts of rows; codes are [rows, blocks, bytes], the others [rows, blocks] and [rows, bytes]."""
    import numpy as np
    import torch

    half = float(np.nextafter(np.float32(0.5), np.float32(0)))  # C's roundf for what is not negative
    levels, middle = float(2**bits - 1), float(2 ** (bits - 1))
    blocks = _blocks(rows, block)
    high, low = blocks.amax(-1), blocks.amin(-1)
    if symmetric:
        scales = torch.where(high.abs() > low.abs(), high, low) / -middle
        zeros = torch.full_like(scales, middle)
    else:
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        scales = (high - low) / levels
        zeros = torch.where(scales != 0, -low / scales, low).add_(half).floor_().clamp_(0, levels)
    inverse = torch.where(scales != 0, scales.reciprocal(), torch.zeros(()))
    codes = (blocks * inverse[..., None]).add_(zeros[..., None])
    codes = codes.clamp_(min=0).add_(half).floor_().clamp_(max=levels).to(torch.uint8)
    codes = codes.view(len(rows), -1)
    codes[:, rows.shape[1] :] = 0
    parts = [pack(codes, bits).view(*scales.shape, -1), scales]
    if not symmetric:
        padded = torch.nn.functional.pad(zeros, (0, -zeros.shape[1] % (8 // bits)), value=middle)
        parts.append(pack(padded.to(torch.uint8), bits))
    return [part.numpy() for part in parts]


def _blocks(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Returns rows as float32 [rows, blocks, block], zeros behind the last column."""
    import torch

    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % block))
    return padded.reshape(rows.shape[0], -1, block)
