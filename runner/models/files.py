"""Files of a model folder: which belong to the graph, how they reach the next folder, how a graph is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import ModelUnavailable
from runner.models.digest import files_below
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import onnx

# Above this size the weights stand in a file of their own: protobuf ends at 2 GB, and the graph around them grows.
LARGE = 1_500_000_000
# Smaller tensors stay in the graph in any case: shapes and axes are among them, and ONNX Runtime reads those nowhere else.
_SMALLEST = 256
# Smaller files are copied, so that nobody who edits a config in place edits the store's copy as well.
_LINKED_FROM = 1_000_000
# What stands beside a graph and says how to use it: configuration, tokenizer, image processor, pooling.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@dataclass(frozen=True)
class ExternalData:
    """How weights are stored outside the graph file.

    Attributes:
        wanted: store them outside; a graph above `LARGE` bytes is split in any case.
        one_file: one file for all tensors, otherwise one a tensor.
        name: name of the one file; the graph's name with ``.data`` by default.
        threshold: smaller tensors (bytes) stay in the graph.
        attributes: move tensors of node attributes out as well.
    """

    wanted: bool = False
    one_file: bool = True
    name: str | None = None
    threshold: int = 1024
    attributes: bool = False


def link(source: Path, destination: Path) -> None:
    """Makes `destination` the same file as `source`: a hard link, or a copy where the disk or the size speaks against it."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= _LINKED_FROM:
        try:
            os.link(source.resolve(), destination)
            return
        except OSError:
            pass  # another disk, or one without hard links: copied below
    shutil.copyfile(source, destination)


def external_files(graph: Path) -> set[str]:
    """Returns the names, relative to the graph's folder, of the files that hold the graph's weights.

    Raises:
        ModelUnavailable: the graph cannot be read.
    """
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    return {
        ExternalDataInfo(tensor).location
        for tensor in _get_all_tensors(read_graph(graph, weights=False))
        if uses_external_data(tensor)
    }


def carry(model: ModelHandle, output: Path, exclude: Collection[str] = (), *, graph: bool = False) -> None:
    """Puts the files of an ONNX or genai folder into `output`, as links or copies.

    Args:
        model: the folder that they come from.
        output: the folder that they go to.
        exclude: names (relative, with forward slashes) left out.
        graph: take the graph and its weights along; without it they are left out, because a pass writes new ones.
    """
    left_out = set(exclude)
    if not graph and model.file:
        left_out |= {model.file, *external_files(model.path)}
    for name, path in files_below(model.folder):
        if name not in left_out:
            link(path, output / name)


def carry_companions(source: Path, output: Path) -> None:
    """Copies configuration, tokenizer and processor files of a Hugging Face folder; weights and code stay behind."""
    for name, path in files_below(source):
        if name.endswith(_COMPANIONS) and not name.endswith(".index.json") and name.count("/") <= 1:
            link(path, output / name)


def read_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Returns the ONNX model at `path`, with its external weights when asked.

    Raises:
        ModelUnavailable: a file is missing, truncated or no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    try:
        return onnx.load(path, load_external_data=weights)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelUnavailable(
            "damaged-model", f"{path} cannot be read as an ONNX model: {error}", "make or fetch the model again"
        ) from error


def write_graph(model: onnx.ModelProto, path: Path, external: ExternalData | None = None) -> None:
    """Writes an ONNX model; its weights go into a file beside it when asked, or when it is larger than `LARGE`."""
    import onnx

    external = external or ExternalData()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not external.wanted and _size(model) < LARGE:
        onnx.save(model, path)
        return
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=external.one_file,
        location=(external.name or f"{path.name}.data") if external.one_file else None,
        size_threshold=max(external.threshold, _SMALLEST),
        convert_attribute=external.attributes,
    )


def _size(model: onnx.ModelProto) -> int:
    """Returns about how many bytes the model takes; counted by tensor, because protobuf itself cannot size large messages."""
    from onnx.external_data_helper import _get_all_tensors

    return sum(len(tensor.raw_data) or 8 * _elements(tensor) for tensor in _get_all_tensors(model))


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count
