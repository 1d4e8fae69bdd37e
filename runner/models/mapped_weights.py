"""Transformers models whose weights stay in their memory-mapped files: widened one module at a time, and given back behind it.

transformers maps safetensors into memory as they are. A module in fp32 is a copy of all of them, twice as large where they
are stored in half precision; here only the module that computes holds its weights in fp32.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from runner.models.quantized_checkpoint import QuantizedMatrix

LARGE = 500_000_000  # weights from which on a model is not copied
_AT_ONCE = 2**24  # weights of a matrix that are widened at a time
_CODES_AT_ONCE = 2**22  # codes of a matrix that are decoded at a time
_PAGE = mmap.PAGESIZE
_DONTNEED = 4  # MADV_DONTNEED: of a file only the mapping goes, what was read stays in the kernel's cache
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: gives pages back, never their content; those of a file leave the cache as well
# of an entry of /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst)
_PRESENT_OR_SWAPPED = 3 << 62
_OF_A_FILE = 1 << 61


def give_back(tensor: torch.Tensor) -> None:
    """Tells the kernel that the pages of a tensor are not needed soon; only a hint, and only on Linux."""
    if sys.platform != "linux" or not tensor.numel():
        return
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE
    length = (tensor.data_ptr() + tensor.numel() * tensor.element_size() - first) // _PAGE * _PAGE
    if length > 0 and (tensor.is_contiguous() or tensor.T.is_contiguous()):
        advice = _DONTNEED if _as_in_file(first, length) else _PAGEOUT
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)


def _as_in_file(first: int, length: int) -> bool:
    """Says whether every page that memory has within bytes from an address is a file's own, not a copy that was written to."""
    import numpy as np

    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            pages.seek(first // _PAGE * 8)
            entries = np.frombuffer(pages.read(length // _PAGE * 8), np.uint64)
    except OSError:
        return False
    held = entries[(entries & np.uint64(_PRESENT_OR_SWAPPED)) != 0]
    return len(entries) == length // _PAGE and bool((held & np.uint64(_OF_A_FILE)).all())


def empty_in_file(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> torch.Tensor:
    """Returns a tensor whose pages the kernel can write to the disk of a folder; the file lives as long as the tensor."""
    import torch

    file = folder / f"{uuid.uuid4().hex}.pages"
    mapped = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    with suppress(OSError):  # where a file that is mapped keeps its name, it goes with the folder
        file.unlink()
    return mapped


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def computes_in_fp32(module: torch.nn.Module) -> bool:
    """Says whether `widen` makes of a module in half precision what it would be in fp32: no buffer was rounded."""
    import torch

    return all(buffer.dtype == torch.float32 for buffer in module.buffers() if buffer.is_floating_point())


@contextmanager
def in_fp32(module: torch.nn.Module, done_with: Callable[[torch.nn.Module, str], bool] = lambda *_: True) -> Iterator[None]:
    """Lets a part of a model hold its weights in fp32 within the block, so that they are not widened at each call.

    Args:
        module: the part.
        done_with: says behind the block whether a change of a module's parameter, by its name, is not needed on; the others
            stay, in fp32.
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
            if done_with(below, name) or torch.equal(wide, one.float()):
                below._parameters[name] = one
            give_back(one)


def same_place(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Says whether two tensors are the same piece of memory."""
    return (one.data_ptr(), one.shape, one.dtype) == (other.data_ptr(), other.shape, other.dtype)


def widen(module: torch.nn.Module) -> None:
    """Lets a module with weights in half precision compute in fp32, from inputs in fp32 or whole numbers."""
    import torch

    room = torch.empty(0)
    whole: Any = module
    tokens = None
    with suppress(AttributeError, NotImplementedError):  # a model that reads no tokens
        tokens = whole.get_input_embeddings()
    for below in module.modules():
        own = [name for name, one in below._parameters.items() if one is not None and one.is_floating_point()]
        if type(below) is torch.nn.Embedding or (below is tokens and isinstance(below, torch.nn.Embedding)):
            below.forward = functools.partial(_looked_up, below, functools.partial(_rows_in_fp32, below))
        elif type(below) is torch.nn.Linear and below.weight.dtype != torch.float32:
            below.forward = functools.partial(_in_slices, below, room)
        elif type(below) is torch.nn.Linear:
            below.register_forward_hook(_read)
        elif own:
            below.register_forward_pre_hook(functools.partial(_widened, own))
            below.register_forward_hook(_narrowed)


def compute_from_codes(module: torch.nn.Module, matrices: Mapping[str, QuantizedMatrix]) -> bool:
    """Lets products and lookups read quantised weights, some rows at a time, in the place of the weights of their modules.

    Args:
        module: the model; what its modules hold as their weights is not looked at any more.
        matrices: the weights by the names of their modules.

    Returns:
        Whether it did; there are modules that compute in another way with their weights.
    """
    import torch

    found = {name: module.get_submodule(name) for name in matrices}
    if any(type(below) is not torch.nn.Linear and not isinstance(below, torch.nn.Embedding) for below in found.values()):
        return False
    for name, below in found.items():
        if isinstance(below, torch.nn.Embedding):
            below.forward = functools.partial(_looked_up, below, functools.partial(_decoded_rows, matrices[name]))
        else:
            below.forward = functools.partial(_in_decoded_slices, below, matrices[name])
    return True


def _in_decoded_slices(module: torch.nn.Linear, matrix: QuantizedMatrix, inputs: torch.Tensor) -> torch.Tensor:
    import torch

    rows = max(1, _CODES_AT_ONCE // module.in_features)
    starts = range(0, module.out_features, rows)
    made = [torch.nn.functional.linear(inputs, matrix.view(at, at + rows).dequantized()) for at in starts]
    give_back(matrix.qweight)
    give_back(matrix.scales)
    outputs = made[0] if len(made) == 1 else torch.cat(made, -1)
    return outputs if module.bias is None else outputs.add_(module.bias)


def _rows_in_fp32(embedding: torch.nn.Embedding, rows: torch.Tensor) -> torch.Tensor:
    return embedding.weight[rows].float()


def _decoded_rows(matrix: QuantizedMatrix, rows: torch.Tensor) -> torch.Tensor:
    return matrix.at(rows).dequantized()


def _looked_up(module: torch.nn.Embedding, rows: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Lets an embedding of tokens, which may also scale them, look up in a weight of those rows alone that are asked for."""
    import torch

    used, places = ids.unique(return_inverse=True)
    weight, padding = module._parameters["weight"], module.padding_idx
    module._parameters["weight"], module.padding_idx = torch.nn.Parameter(rows(used), requires_grad=False), None
    try:
        found: torch.Tensor = type(module).forward(module, places)
        return found
    finally:
        module._parameters["weight"], module.padding_idx = weight, padding


def _read(module: torch.nn.Linear, _: Any, __: Any) -> None:
    give_back(module.weight)


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
        kept = torch.is_grad_enabled() and (inputs.requires_grad or part.requires_grad)  # until the gradient has passed
        wide = part.float() if kept else room[: part.numel()].view(part.shape).copy_(part)
        made.append(torch.nn.functional.linear(inputs, wide))
    give_back(module.weight)
    outputs = made[0] if len(made) == 1 else torch.cat(made, -1)
    return outputs if module.bias is None else outputs.add_(module.bias)
