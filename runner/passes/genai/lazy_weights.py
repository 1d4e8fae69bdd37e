"""Weights that are read, or made, when the graph's file is written: a few rows of the memory-mapped checkpoint at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.passes.genai.nbits_rounding import Parts, Quantise

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

Done = Callable[[Sequence["torch.Tensor"]], None]  # is told which tensors were read
Passed = Callable[["torch.Tensor", "torch.Tensor"], None]  # is told of a tensor, which is still being read, the rows that were

ASKED_ROWS = 16  # that MatMulNBitsQuantizer quantises of each weight in any case; whole bytes of zero points
_WEIGHTS_AT_ONCE = 2**20  # that a thread works on
_STORED_AT_ONCE = 2**24  # elements that are written before their rows are given up


@dataclass(frozen=True)
class Rows:
    """A weight, [outputs, inputs], as it lies in the checkpoint: one matrix, or several below one another."""

    parts: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Returns how many outputs and inputs it has."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def T(self) -> Columns:  # noqa: N802  # the builder asks for it by this name
        """Returns it as the product takes it."""
        return Columns(self)

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Returns the rows from `start` up to `stop`."""
        import torch

        taken, at = [], 0
        for part in self.parts:
            low, high = max(start - at, 0), min(stop - at, part.shape[0])
            if low < high:
                taken.append(part[low:high])
            at += part.shape[0]
        return taken[0] if len(taken) == 1 else torch.cat(taken)


@dataclass(frozen=True)
class Columns:
    """The transpose of rows."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """Returns how many inputs and outputs the weight has."""
        outputs, inputs = self.rows.shape
        return inputs, outputs


@dataclass(frozen=True)
class Below:
    """Tensors below one another, as the builder passes a tensor around."""

    parts: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of all of them together."""
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]


class Quantised:
    """A weight that is quantised when the first of its tensors is asked for, and forgotten behind the last one."""

    def __init__(self, rows: Rows, kernel: Quantise, threads: int, done: Done) -> None:
        self._rows, self._kernel, self._threads, self._done = rows, kernel, threads, done
        self._lock = threading.Lock()
        self._left: dict[int, np.ndarray[Any, Any]] = {}

    def part(self, at: int, name: str) -> ir.Tensor:
        """Returns the tensor at a place among codes, scales and zero points."""
        import onnx_ir as ir

        with self._lock:
            if at not in self._left:
                self._left = dict(enumerate(self._all()))
            return ir.Tensor(self._left.pop(at), name=name)

    def _all(self) -> list[np.ndarray[Any, Any]]:
        """Quantises a few rows at a time on every thread; PyTorch itself splits no operation meanwhile."""
        import numpy as np
        import torch

        count, width = self._rows.shape
        step = max(ASKED_ROWS, _WEIGHTS_AT_ONCE // width // ASKED_ROWS * ASKED_ROWS)
        starts = range(0, count, step)
        whole: list[np.ndarray[Any, Any]] = []

        def some(start: int) -> tuple[int, Parts]:
            with torch.inference_mode():
                return start, list(self._kernel(self._rows.take(start, min(start + step, count))))

        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            for start, parts in pool.map(some, starts):
                if not whole:
                    whole = [np.empty((count, *part.shape[1:]), part.dtype) for part in parts]
                for goal, part in zip(whole, parts, strict=True):
                    goal[start : start + len(part)] = part
        self._done(self._rows.parts)
        return whole


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets an operation of torch use one thread within the block; those that share a small one mostly wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stored_tensor(below: Below, dtype: ir.DataType | None, name: str, passed: Passed, done: Done) -> ir.LazyTensor:
    """Returns tensors below one another, in a type or as they are, read some rows at a time when they are written."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype, to_torch_dtype

    stored = below.parts[0].dtype if dtype is None else to_torch_dtype(dtype)

    class Streamed(ir.LazyTensor):  # type: ignore[misc]
        def tofile(self, file: Any) -> None:
            for part in below.parts:
                for rows in part.split(max(1, _STORED_AT_ONCE * len(part) // part.numel())) if part.numel() else ():
                    TorchTensor(rows.to(stored)).tofile(file)
                    passed(part, rows)
            done(below.parts)

    def whole() -> ir.TensorProtocol:
        import torch

        return TorchTensor(torch.cat([part.to(stored) for part in below.parts]), name=name)

    return Streamed(whole, dtype=from_torch_dtype(stored), shape=ir.Shape(below.shape), name=name)


def float_tensor(rows: Rows, dtype: ir.DataType, name: str, done: Done) -> ir.LazyTensor:
    """Returns the transpose of rows in a float type, made when it is written, some of it at a time."""
    import onnx_ir as ir
    import torch

    outputs, inputs = rows.shape
    step = max(1, _WEIGHTS_AT_ONCE * 16 // outputs)

    def piece(start: int, stop: int) -> np.ndarray[Any, Any]:
        return in_onnx_type(torch.cat([part[:, start:stop] for part in rows.parts]).T.contiguous(), dtype)

    class Streamed(ir.LazyTensor):  # type: ignore[misc]
        def tofile(self, file: Any) -> None:
            for start in range(0, inputs, step):
                file.write(piece(start, min(start + step, inputs)).tobytes())
            done(rows.parts)

    def whole() -> ir.TensorProtocol:
        return ir.Tensor(piece(0, inputs), dtype=dtype, name=name)

    return Streamed(whole, dtype=dtype, shape=ir.Shape((inputs, outputs)), name=name)


def in_onnx_type(tensor: torch.Tensor, dtype: ir.DataType) -> np.ndarray[Any, Any]:
    """Returns the values in an ONNX type, as the builder casts them."""
    from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

    array: np.ndarray[Any, Any] = TorchTensor(tensor.to(to_torch_dtype(dtype))).numpy()
    return array
