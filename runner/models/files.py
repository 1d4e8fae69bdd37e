"""Files of a model folder: which belong to the graph, how they reach the next folder, how a graph is written."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.errors import ModelUnavailable
from runner.models.components import component_names
from runner.models.digest import files_below
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import onnx

# Above this size the weights stand in a file of their own: protobuf ends at 2 GB, and the graph around them grows.
LARGE = 1_500_000_000
# Smaller tensors stay in the graph in any case: shapes and axes are among them, and ONNX Runtime reads those nowhere else.
_SMALLEST = 256
# An external tensor's StringStringEntryProto as protobuf writes it: key (field 1), then value (field 2) with its length.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]{0,2}[\x00-\x7f])")
# Smaller files are copied, so that nobody who edits a config in place edits the store's copy as well.
_LINKED_FROM = 1_000_000
# What stands beside a graph and says how to use it: configuration, tokenizer, image processor, pooling.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_NOT_COMPANIONS = (".index.json", "adapter_config.json", "adapter_training.json")  # of sharded weights; of an adapter
# The same by name, for a graph in a folder of which nothing else is known; `*` stands for any ending.
_COMPANION_NAMES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "session_options.json",
)  # fmt: skip


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

    @property
    def kept_below(self) -> int:
        """Returns the bytes below which a tensor stays in the graph."""
        return max(self.threshold, _SMALLEST)


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


def graph_files(graph: Path) -> tuple[str, ...]:
    """Returns the names, relative to the graph's folder, of the graph, its weights and the known companions beside it.

    Raises:
        ModelUnavailable: the graph cannot be read, or names weights that are not there or outside its folder.
    """
    folder = graph.parent
    weights = _named_weights(graph)
    if _missing(folder, weights):
        weights = external_files(graph)
    if missing := _missing(folder, weights):
        raise ModelUnavailable(
            "model-damaged", f"{graph} names weights that its folder lacks: {', '.join(missing)}", "fetch the model again"
        )
    beside = {
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in _COMPANION_NAMES)
    }
    return tuple(sorted({graph.name} | weights | beside))


def _missing(folder: Path, names: Collection[str]) -> list[str]:
    # os.path, because pathlib raises on a name too long for a file
    return sorted(name for name in names if ".." in Path(name).parts or not os.path.isfile(folder / name))  # noqa: PTH113


def _named_weights(graph: Path) -> set[str]:
    """Finds what `external_files` finds in the bytes of the graph: importing onnx takes as long as the rest of a cached run.

    Bytes that only look like an entry give a name of no file, so a name without a file wants a second look.
    """
    if not graph.stat().st_size:
        return set()
    names = set()
    with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in _LOCATION.finditer(content):
            length = sum((byte & 0x7F) << 7 * at for at, byte in enumerate(found[1]))
            names.add(content[found.end() : found.end() + length].decode(errors="replace"))
    return names


def graphs_of(model: ModelHandle) -> tuple[str, ...]:
    """Returns the names of the ONNX graphs of an `onnx` or `genai` model, relative to its folder; its own `file` first.

    An `onnx` model that was split lies in several, which its attribute `components` names.
    A genai folder may hold several, each a section of genai_config.json: decoder, encoder, embedding, vision, speech.
    """
    first = [model.file] if model.file else []
    config = model.folder / "genai_config.json"
    if model.kind != "genai" or not config.is_file():
        return tuple(dict.fromkeys([*first, *component_names(model)]))
    described = json.loads(config.read_text(encoding="utf-8")).get("model", {})
    named = [name for name in _file_names(described) if name.endswith(".onnx") and (model.folder / name).is_file()]
    return tuple(dict.fromkeys([*first, *named]))


def _file_names(section: Any) -> Iterator[str]:
    if isinstance(section, dict):
        if isinstance(section.get("filename"), str):
            yield section["filename"]
        for below in section.values():
            yield from _file_names(below)
    elif isinstance(section, list):
        for below in section:
            yield from _file_names(below)


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
    names = [name for name, _ in files_below(model.folder)] if model.files is None else model.files
    for name in names:
        if name not in left_out:
            link(model.folder / name, output / name)


def carry_companions(source: Path, output: Path) -> None:
    """Copies configuration, tokenizer and processor files of a Hugging Face folder; weights and code stay behind."""
    for name, path in files_below(source):
        if name.endswith(_COMPANIONS) and not name.endswith(_NOT_COMPANIONS) and name.count("/") <= 1:
            link(path, output / name)


def read_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Returns the ONNX model at `path`, with its external weights when asked.

    Raises:
        ModelUnavailable: a file is missing, truncated or no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    try:
        model = onnx.load(path, load_external_data=False)
        if weights:
            _fill_weights(model, path.parent)
        return model
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelUnavailable(
            "damaged-model", f"{path} cannot be read as an ONNX model: {error}", "make or fetch the model again"
        ) from error


def _fill_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Brings external weights into the model; onnx itself refuses files with several hard links, as the store's have."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    with ExitStack() as opened:
        streams: dict[str, IO[bytes]] = {}
        for tensor in _get_all_tensors(model):
            if not uses_external_data(tensor):
                continue
            stored = ExternalDataInfo(tensor)
            if _missing(folder, [stored.location]):
                raise ValueError(f"the weights of {tensor.name} lie in '{stored.location}', which its folder lacks")
            if stored.location not in streams:
                streams[stored.location] = opened.enter_context((folder / stored.location).open("rb"))
            stream = streams[stored.location]
            stream.seek(stored.offset or 0)
            tensor.raw_data = stream.read() if stored.length is None else stream.read(stored.length)
            if stored.length is not None and len(tensor.raw_data) != stored.length:
                raise ValueError(f"the weights of {tensor.name} are cut off in '{stored.location}'")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT


def unlinked(graph: Path, scratch: Path) -> Path:
    """Returns the graph for libraries that read it by its path: onnx refuses weights in files that have several hard links.

    Returns:
        The path itself, or that of a copy in `scratch` where such a link exists.
    """
    weights = external_files(graph)
    if all((graph.parent / name).stat().st_nlink == 1 for name in weights):
        return graph
    for name in {graph.name, *weights}:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.parent / name, scratch / name)
    return scratch / graph.name


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
        size_threshold=external.kept_below,
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
