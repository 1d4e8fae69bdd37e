"""Weights of a graph in files beside it: read where they lie, and written one at a time, so that none has to stay in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.errors import ModelUnavailable
from runner.models.files import read_graph

if TYPE_CHECKING:
    import numpy as np
    import onnx

_PAGE = 4096  # ONNX Runtime maps weights that begin on a page
_COPIED_AT_ONCE = 2**24  # bytes


def read_in_place(path: Path) -> onnx.ModelProto:
    """Returns the ONNX model at `path`; its external weights stay in their files, which their tensors name by full paths.

    Raises:
        ModelUnavailable: a file is missing, too short, or no ONNX model.
    """
    from onnx.external_data_helper import ExternalDataInfo

    model = read_graph(path, weights=False)
    for tensor in _outside(model):
        stored = ExternalDataInfo(tensor)
        file, offset = path.parent / stored.location, stored.offset or 0
        there = file.stat().st_size - offset if file.is_file() and ".." not in Path(stored.location).parts else -1
        length = max(there, 0) if stored.length is None else stored.length
        if there < length or there < 0:
            raise ModelUnavailable(
                "damaged-model", f"the weights of {tensor.name} are not whole in {file}", "make or fetch the model again"
            )
        _point(tensor, str(file.resolve()), offset, length)
    return model


def values_of(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """Returns the values of a tensor of `read_in_place`: mapped into memory where they lie in a file, copied on write."""
    import numpy as np
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    stored = ExternalDataInfo(tensor) if uses_external_data(tensor) else None
    if stored is None or not stored.length or stored.length != kind.itemsize * int(np.prod(tensor.dims)):
        inside: np.ndarray[Any, Any] = numpy_helper.to_array(tensor).copy()
        return inside
    mapped: np.ndarray[Any, Any] = np.memmap(stored.location, kind, "c", stored.offset or 0, tuple(tensor.dims))
    return mapped


@dataclass(frozen=True)
class WeightFile:
    """The file that the weights of a graph go to.

    Attributes:
        file: open for writing.
        location: its name, relative to the graph's folder.
        threshold: smaller tensors (bytes) stay in the graph.
    """

    file: IO[bytes]
    location: str
    threshold: int

    def put(self, tensor: onnx.TensorProto) -> None:
        """Moves the values of a tensor into the file, from the graph or from the file that they lie in."""
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data

        stored = ExternalDataInfo(tensor) if uses_external_data(tensor) else None
        if stored is None and len(tensor.raw_data) < self.threshold:
            return
        start = -(-self.file.tell() // _PAGE) * _PAGE
        self.file.seek(start)
        if stored is None:
            length = self.file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
        else:
            length = stored.length
            self._copy(Path(stored.location), stored.offset, length)
        _point(tensor, self.location, start, length)

    def put_rest(self, model: onnx.ModelProto) -> None:
        """Moves the weights that are not in the file yet; tensors of node attributes stay in the graph."""
        from onnx.external_data_helper import ExternalDataInfo, _get_initializer_tensors, uses_external_data

        inside = (tensor for tensor in _get_initializer_tensors(model) if not uses_external_data(tensor))
        elsewhere = (tensor for tensor in _outside(model) if ExternalDataInfo(tensor).location != self.location)
        for tensor in (*inside, *elsewhere):
            self.put(tensor)

    def _copy(self, path: Path, offset: int, length: int) -> None:
        with path.open("rb") as stream:
            stream.seek(offset)
            while length and (part := stream.read(min(length, _COPIED_AT_ONCE))):
                length -= self.file.write(part)


@contextmanager
def weight_file(graph: Path, name: str | None, threshold: int) -> Iterator[WeightFile]:
    """Opens the file for the weights of a graph.

    Args:
        graph: path of the graph that is written.
        name: of the file; the graph's with ``.data`` by default.
        threshold: smaller tensors (bytes) stay in the graph.
    """
    location = name or f"{graph.name}.data"
    path = graph.parent / location
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield WeightFile(file, location, threshold)


def _outside(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    return (tensor for tensor in _get_all_tensors(model) if uses_external_data(tensor))


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Says that the values of a tensor lie in a file."""
    import onnx

    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
