"""What goes into a model: names, types and shapes of a graph's inputs, and made-up values that fit them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem
from runner.models.components import component_names, is_pipeline, read_manifest
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.models.tasks import IMAGE_ONLY, TEXT_ONLY, task_named, task_of

if TYPE_CHECKING:
    import numpy as np

IMAGE_TASKS = IMAGE_ONLY
TEXT_TASKS = TEXT_ONLY
CACHE_WIDTH = "kv_cache_dim"  # name of that dimension
_SEQUENCE = 32
_IMAGE = 224
_FEW_PLACES = {"clip": 77, "siglip": 64}  # of texts, where config.json leaves them out: transformers writes no defaults
_CLASS_TOKEN = ("deit", "dinov2", "dinov2_with_registers", "vit")
_SAMPLES = 16_000  # a second of sound


@dataclass(frozen=True)
class GraphInput:
    """One input of a model.

    Attributes:
        name: its name.
        dtype: numpy's name of its element type.
        shape: its dimensions; a text (or None where it is anonymous) stands for one that varies.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def graph_inputs(graph: Path) -> tuple[GraphInput, ...]:
    """Returns the inputs of an ONNX graph, those with a default value in the graph left out.

    Raises:
        ModelUnavailable: it is the folder of a pipeline, which is no one graph.
    """
    import onnx

    if graph.is_dir():
        cause = f"{graph} holds a pipeline of several models, which is not measured as one graph"
        raise ModelUnavailable("several-models", cause, "its receipt compares each of them; 'recipe try' times what it draws")
    read = read_graph(graph, weights=False).graph
    width = cache_width(graph.parent)
    defaults = {tensor.name for tensor in read.initializer}
    found = []
    for value in read.input:
        if value.name in defaults:
            continue
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
        if value.name.startswith("past"):
            shape = tuple(width or axis if axis == CACHE_WIDTH else axis for axis in shape)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        found.append(GraphInput(value.name, dtype, shape))
    return tuple(found)


def model_inputs(model: ModelHandle) -> tuple[GraphInput, ...]:
    """Returns what the model takes: its graph's inputs, for a chain of graphs those of the whole; or those of its task.

    Raises:
        ModelUnavailable: it is a pipeline, which is no one graph.
        InvalidRecipe: its task is not one whose inputs are known.
    """
    if model.kind != "onnx":
        return source_inputs(model)
    if not component_names(model) or is_pipeline(model):
        return graph_inputs(model.path)
    manifest = read_manifest(model)
    found = {one.name: one for file in manifest.components for one in graph_inputs(model.folder / file)}
    return tuple(found[name] for name in manifest.inputs if name in found)


def cache_width(folder: Path) -> int | None:
    """Returns the last dimension of the key-value cache, which onnxruntime-genai's builder leaves open in the graph."""
    width = read_facts(folder, "genai_config.json").get("model", {}).get("decoder", {}).get("head_size")
    return int(width) if width else None


def vocabulary_size(folder: Path) -> int:
    """Returns how many token ids the model in a folder knows; 1000 where nothing says so."""
    facts = read_facts(folder)
    known = facts.get("vocab_size") or (facts.get("text_config") or {}).get("vocab_size")
    return int(known or read_facts(folder, "genai_config.json").get("model", {}).get("vocab_size") or 1000)


def read_facts(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Returns the mapping in one of the folder's JSON files; empty where there is no such file."""
    path = folder / name
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts


def pools_first_token(folder: Path) -> bool:
    """Returns whether the embeddings of the model in a folder are its first token's state, and not the mean over tokens."""
    return bool(read_facts(folder / "1_Pooling").get("pooling_mode_cls_token")) or _has_class_token(folder)


def _has_class_token(folder: Path) -> bool:
    """Says whether it is a vision transformer that was trained to put the whole picture into its first token."""
    return read_facts(folder).get("model_type") in _CLASS_TOKEN


def sequence_length(folder: Path, wanted: int) -> int:
    """Returns the wanted length, or the longest sequence that the model in a folder has positions for."""
    facts = read_facts(folder)
    facts = {**(facts.get("text_config") or {}), **facts}
    usual = _FEW_PLACES.get(str(facts.get("model_type")), wanted)
    longest = facts.get("max_position_embeddings") or facts.get("n_positions") or usual
    return min(wanted, int(longest))


def longest_text(tokenizer: Any, folder: Path) -> int:
    """Returns how many tokens a text may have: what the tokenizer says, or the model in a folder where it has fewer places."""
    return sequence_length(folder, int(tokenizer.model_max_length))


def image_size(folder: Path) -> tuple[int, int, int]:
    """Returns (channels, height, width) that the image model in a folder works on."""
    own = read_facts(folder)
    facts = {**read_facts(folder, "preprocessor_config.json"), **(own.get("vision_config") or {}), **own}
    asked = facts.get("crop_size") or facts.get("size") or facts.get("image_size") or _IMAGE
    if isinstance(asked, Mapping):
        edge = asked.get("shortest_edge", _IMAGE)
        height, width = int(asked.get("height", edge)), int(asked.get("width", edge))
    elif isinstance(asked, Sequence):
        height, width = int(asked[0]), int(asked[-1])
    else:
        height = width = int(asked)
    return int(facts.get("num_channels", 3)), height, width


def source_inputs(model: ModelHandle) -> tuple[GraphInput, ...]:
    """Returns the inputs of a transformers folder for its task: pixels, sound, or token ids with a mask and what else it reads.

    Raises:
        InvalidRecipe: the task is not one whose inputs are known.
    """
    task = task_of(model)
    reads = task_named(task).reads
    if "text" in reads and "image" in reads and not task.startswith("zero-shot"):
        raise InvalidRecipe(
            Problem(
                "unknown-task",
                f"the inputs of a model for '{task}' are its processor's",
                remedy="use ModelBuilder, or a PyTorchModel with dummy_inputs_func and io_config",
            )
        )
    found: list[GraphInput] = []
    if "text" in reads:
        batch = "batch" if len(reads) == 1 or "decoder" in reads else "text_batch"
        found += [GraphInput(name, "int64", (batch, "sequence")) for name in _text_names(model.folder)]
    if "image" in reads:
        batch = "batch" if len(reads) == 1 else "image_batch"
        found.append(GraphInput("pixel_values", "float32", (batch, *image_size(model.folder))))
    if "audio" in reads:
        found.append(_audio_input(model.folder))
    if "decoder" in reads and not str(model.attributes.get("architecture") or "").endswith("ForCTC"):
        found.append(GraphInput("decoder_input_ids", "int64", ("batch", "decoder_sequence")))
    return tuple(found)


def _text_names(folder: Path) -> list[str]:
    names = ["input_ids", "attention_mask"]
    return [*names, "token_type_ids"] if _reads_token_types(folder) else names


def _audio_input(folder: Path) -> GraphInput:
    """A spectrogram of Whisper's fixed length, or samples of any length."""
    facts = read_facts(folder)
    if facts.get("num_mel_bins") and facts.get("max_source_positions"):
        shape = ("batch", int(facts["num_mel_bins"]), 2 * int(facts["max_source_positions"]))
        return GraphInput("input_features", "float32", shape)
    return GraphInput("input_values", "float32", ("batch", "samples"))


def _reads_token_types(folder: Path) -> bool:
    """Says whether the model tells sentences apart: its embedding has types, and its tokenizer gives them."""
    if int(read_facts(folder).get("type_vocab_size") or 0) < 1:
        return False
    tokenizer = read_facts(folder, "tokenizer_config.json")
    names = tokenizer.get("model_input_names")
    return names is None or "token_type_ids" in names


def made_up(
    inputs: Sequence[GraphInput], folder: Path, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns random values that the model accepts: ids inside the vocabulary, masks of ones, everything else normal.

    Args:
        inputs: the inputs to fill.
        folder: the model folder, whose config.json knows the vocabulary.
        sizes: what varying dimensions become, by name; one for batches, 32 for sequences, 224 for image edges otherwise.
        seed: of the generator; the same seed gives the same values.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    vocabulary = vocabulary_size(folder)
    made = {}
    for one in inputs:
        shape = tuple(_size(dimension, at, one.name, sizes or {}) for at, dimension in enumerate(one.shape))
        made[one.name] = _values(generator, one, shape, vocabulary)
    return made


def _size(dimension: int | str | None, axis: int, name: str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int) and dimension > 0:
        return dimension
    if isinstance(dimension, str) and dimension in sizes:
        return sizes[dimension]
    if axis == 0 or (isinstance(dimension, str) and "batch" in dimension):
        return 1
    if dimension == "samples":
        return _SAMPLES
    return _IMAGE if "pixel" in name or "image" in name else _SEQUENCE


def _values(generator: Any, one: GraphInput, shape: tuple[int, ...], vocabulary: int) -> Any:
    import numpy as np

    if one.dtype == "bool" or "mask" in one.name:
        return np.ones(shape, one.dtype)
    if "token_type" in one.name:
        return np.zeros(shape, one.dtype)
    if "position" in one.name and one.dtype.startswith("int"):
        return np.broadcast_to(np.arange(shape[-1], dtype=one.dtype), shape).copy()
    if one.dtype.startswith(("int", "uint")):
        return generator.integers(0, vocabulary if "ids" in one.name else 2, shape).astype(one.dtype)
    return generator.standard_normal(shape).astype(one.dtype)
