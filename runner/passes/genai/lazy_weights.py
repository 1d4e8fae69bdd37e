"""Weights that are read, or made, when the graph's file is written: a few rows of the memory-mapped checkpoint at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.passes.genai.nbits_rounding import Quantise

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

    def __init__(self, rows: Rows, kernel: Quantise, done: Done, line: Line) -> None:
        self._rows, self._kernel, self._done, self._line = rows, kernel, done, line
        self._lock = threading.Lock()
        self._making: list[Future[None]] = []
        self._whole: list[np.ndarray[Any, Any]] = []
        self._left: dict[int, np.ndarray[Any, Any]] = {}

    def part(self, at: int, name: str) -> ir.Tensor:
        """Returns the tensor at a place among codes, scales and zero points."""
        import onnx_ir as ir

        if at not in self._left:
            self._line.begin(self)
            for one in self._making:
                one.result()
            self._done(self._rows.parts)
            self._left, self._making, self._whole = dict(enumerate(self._whole)), [], []
        return ir.Tensor(self._left.pop(at), name=name)

    def begin(self, pool: Executor) -> None:
        """Lets threads quantise it, a few rows at a time, unless they do."""
        if not self._making:
            count, width = self._rows.shape
            step = max(ASKED_ROWS, _WEIGHTS_AT_ONCE // width // ASKED_ROWS * ASKED_ROWS)
            self._making = [pool.submit(self._some, at, min(at + step, count)) for at in range(0, count, step)]

    def _some(self, start: int, stop: int) -> None:
        import numpy as np
        import torch

        with torch.inference_mode():
            parts = self._kernel(self._rows.take(start, stop))
        with self._lock:
            self._whole = self._whole or [np.empty((self._rows.shape[0], *part.shape[1:]), part.dtype) for part in parts]
        for goal, part in zip(self._whole, parts, strict=True):
            goal[start:stop] = part


class Line:
    """Weights in the order in which they are written: while one is, threads quantise the next.

    A context manager, behind which nothing is quantised any more. PyTorch itself splits no operation from the first one on.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._weights: list[Quantised] = []
        self._pool: Executor | None = None
        self._undone = ExitStack()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._undone.close()

    def add(self, rows: Rows, kernel: Quantise, done: Done) -> Quantised:
        """Returns a weight that is written behind those that were added before.

        Args:
            rows: the weight.
            kernel: quantises some of its rows.
            done: is told when it was read.
        """
        self._weights.append(Quantised(rows, kernel, done, self))
        return self._weights[-1]

    def begin(self, weight: Quantised) -> None:
        """Lets the threads quantise a weight, and the next one behind it."""
        if self._pool is None:
            self._undone.enter_context(one_thread())
            self._pool = pool = ThreadPoolExecutor(self._threads)
            self._undone.callback(pool.shutdown, cancel_futures=True)
        at = self._weights.index(weight)
        for one in self._weights[at : at + 2]:
            one.begin(self._pool)


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
