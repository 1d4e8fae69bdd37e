"""Weights of MatMulNBits as ONNX Runtime quantises them, bit for bit, from rows as a checkpoint holds them.

Its quantisers want a weight transposed and on its own, work on all of it at once, and those in numpy take minutes for a model
of a billion weights. `default` is the arithmetic of its `BlockwiseQuantizer` (core/mlas/lib/q4_dq.cpp), `rtn` and `k_quant` are
that of quantization/neural_compressor/weight_only.py; the latter follows `make_qkx2_quants` of llama.cpp.
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

_AT_ONCE = 2**16  # weights that k_quant works on at a time: what it keeps of them stays in the cache
_RANGES = 20  # that k_quant tries for each block


def rounding_of(method: str, bits: int, block: int, symmetric: bool) -> Quantise | None:
    """Returns what quantises rows to codes, scales and zero points as ONNX Runtime does; None for other methods."""
    if bits not in (4, 8):
        return None
    if method == "default":
        return partial(_default, bits=bits, block=block, symmetric=symmetric)
    if method == "rtn":
        return partial(_rtn, bits=bits, block=block, symmetric=symmetric)
    if method == "k_quant":
        return partial(_k_quant, bits=bits, block=block)
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


def _rtn(rows: torch.Tensor, bits: int, block: int, symmetric: bool) -> Parts:
    """Returns the parts of rows; scales are fp64 until they are stored, and zero lies outside the range of some blocks."""
    import torch

    levels, middle = float(2**bits - 1), float(2 ** (bits - 1))
    blocks = _blocks(rows, block)
    high, low = blocks.amax(-1), blocks.amin(-1)
    if symmetric:
        span, zeros = torch.maximum(high.abs(), low.abs()) * 2, torch.full_like(high, middle)
    else:
        span, zeros = high - low, low
    scales = torch.where(span > 0, span.double() / levels, 1.0)
    if not symmetric:
        zeros = (-low.double() / scales).round_().clamp_(0, levels)
    codes = _nearest(blocks, scales, zeros, levels)
    return _parts(codes, scales, None if symmetric else zeros, bits)


def _k_quant(rows: torch.Tensor, bits: int, block: int) -> Parts:
    """Returns the parts of rows, on grids with the least weighted error among those that the ranges tried lead to."""
    import torch

    levels = float(2**bits - 1)
    whole = _blocks(rows, block)
    made = [_k_quant_grid(part.reshape(-1, block), levels) for part in whole.split(max(1, _AT_ONCE // whole[0].numel()))]
    scales, zeros = (torch.cat(one).view(whole.shape[:2]) for one in zip(*made, strict=True))
    codes = torch.cat(
        [
            _nearest(part, scale.double(), zero, levels)
            for part, scale, zero in zip(*(one.split(16) for one in (whole, scales, zeros)), strict=True)
        ]
    )
    return _parts(codes, scales, zeros, bits)


def _k_quant_grid(blocks: torch.Tensor, levels: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scales and the codes of zero of blocks [blocks, block]."""
    import numpy as np
    import torch

    from runner.passes.genai.k_quant_search import search, total

    data = blocks.T.contiguous()  # sums over a block are then sums of rows
    mean = total(data * data) / len(data)
    weights = data.abs().add_(torch.from_numpy(np.sqrt(mean.numpy())))  # MKL's root is not always the nearest number
    ranges = [levels, *(float(np.float32(-1 + 0.1 * at + levels)) for at in range(_RANGES))]
    scales, zeros = search(data, weights, levels, torch.tensor(ranges))
    return scales, zeros


def _nearest(blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, levels: float) -> torch.Tensor:
    """Returns the codes of blocks [rows, blocks, block], computed in fp64; a tie goes to the even one."""
    import torch

    return (blocks / scales[..., None]).add_(zeros[..., None]).round_().clamp_(0, levels).to(torch.uint8)


def _parts(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> Parts:
    """Returns what MatMulNBits takes."""
    import torch

    parts = [pack(codes.view(len(codes), -1), bits).view(*scales.shape, -1), scales.float()]
    if zeros is not None:
        parts.append(pack(zeros.to(torch.uint8), bits))
    return [part.numpy() for part in parts]


def _blocks(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Returns rows as float32 [rows, blocks, block], zeros behind the last column."""
    import torch

    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % block))
    return padded.reshape(rows.shape[0], -1, block)
