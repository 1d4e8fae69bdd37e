"""Transformers models whose weights stay in their memory-mapped files: widened one module at a time, and given back behind it.

transformers maps safetensors into memory as they are. A module in fp32 is a copy of all of them, twice as large where they
are stored in half precision; here only the module that computes holds its weights in fp32.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGE = 500_000_000  # weights from which on a model is not copied
_AT_ONCE = 2**24  # weights of a matrix that are widened at a time
_PAGE = 4096
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: gives pages back, never their content


def give_back(tensor: torch.Tensor) -> None:
    """Tells the kernel that the pages of a tensor are not needed soon; only a hint, and only on Linux."""
    if sys.platform != "linux" or not tensor.numel():
        return
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE
    length = (tensor.data_ptr() + tensor.numel() * tensor.element_size() - first) // _PAGE * _PAGE
    if tensor.is_contiguous() or tensor.T.is_contiguous():
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(length, 0)), _PAGEOUT)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def computes_in_fp32(module: torch.nn.Module) -> bool:
    """Says whether `widen` makes of a module in half precision what it would be in fp32: no buffer was rounded."""
    import torch

    return all(buffer.dtype == torch.float32 for buffer in module.buffers() if buffer.is_floating_point())


@contextmanager
def in_fp32(module: torch.nn.Module, done_with: Callable[[torch.nn.Module], bool] = lambda _: True) -> Iterator[None]:
    """Lets a part of a model hold its weights in fp32 within the block, so that they are not widened at each call.

    Args:
        module: the part.
        done_with: says behind the block whether changes of a module's weights are not needed on; the others stay, in fp32.
    """
    import torch

    kept = [
        (below, name, one)
        for below in module.modules()
        for name, one in below._parameters.items()
        if one is not None and one.is_floating_point() and one.dtype != torch.float32
    ]
    for below, name, one in kept:
        below._parameters[name] = torch.nn.Parameter(one.float(), requires_grad=False)
    try:
        yield
    finally:
        for below, name, one in kept:
            wide: Any = below._parameters[name]
            if done_with(below) or torch.equal(wide, one.float()):
                below._parameters[name] = one
            give_back(one)


def same_place(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Says whether two tensors are the same piece of memory."""
    return (one.data_ptr(), one.shape, one.dtype) == (other.data_ptr(), other.shape, other.dtype)


def widen(module: torch.nn.Module) -> None:
    """Lets a module with weights in half precision compute in fp32, from inputs in fp32 or whole numbers."""
    import torch

    room = torch.empty(0)
    for below in module.modules():
        own = [name for name, one in below._parameters.items() if one is not None and one.is_floating_point()]
        if type(below) is torch.nn.Embedding:
            below.register_forward_hook(_widened_output)
        elif type(below) is torch.nn.Linear and below.weight.dtype != torch.float32:
            below.forward = functools.partial(_in_slices, below, room)
        elif own:
            below.register_forward_pre_hook(functools.partial(_widened, own))
            below.register_forward_hook(_narrowed)


def _widened_output(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _widened(names: list[str], module: Any, _: Any) -> None:
    """Puts copies in fp32 in the place of the weights, which are kept beside them."""
    import torch

    module._narrow = {name: module._parameters[name] for name in names}
    for name, one in module._narrow.items():
        module._parameters[name] = torch.nn.Parameter(one.float(), requires_grad=False)


def _narrowed(module: Any, _: Any, __: Any) -> None:
    """Takes the copies away again."""
    import torch

    for name, one in module._narrow.items():
        module._parameters[name] = one
        if one.dtype != torch.float32:  # else there was no copy, and it is needed on
            give_back(one)
    del module._narrow


def _in_slices(module: torch.nn.Linear, room: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Computes the outputs of a matrix some at a time.

    Args:
        module: holds the matrix.
        room: memory for rows in fp32, used again by all matrices: to get fresh pages from the kernel takes longer than to
            widen what goes into them. It grows to what is needed.
        inputs: of the matrix.
    """
    import torch

    rows = max(1, min(_AT_ONCE // module.in_features, module.out_features))
    if room.numel() < rows * module.in_features:
        room.resize_(rows * module.in_features)
    made = []
    for part in module.weight.split(rows):
        wide = room[: part.numel()].view(part.shape).copy_(part)
        made.append(torch.nn.functional.linear(inputs, wide))
    give_back(module.weight)
    outputs = made[0] if len(made) == 1 else torch.cat(made, -1)
    return outputs if module.bias is None else outputs.add_(module.bias)
