"""What goes into a model: names, types and shapes of a graph's inputs, and made-up values that fit them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, Problem
from runner.models.files import read_graph
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np

IMAGE_TASKS = ("image-classification", "image-feature-extraction")
_SEQUENCE = 32
_IMAGE = 224


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
    """Returns the inputs of an ONNX graph, those with a default value in the graph left out."""
    import onnx

    read = read_graph(graph, weights=False).graph
    defaults = {tensor.name for tensor in read.initializer}
    found = []
    for value in read.input:
        if value.name in defaults:
            continue
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        found.append(GraphInput(value.name, dtype, shape))
    return tuple(found)


def read_facts(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Returns the mapping in one of the folder's JSON files; empty where there is no such file."""
    path = folder / name
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts


def sequence_length(folder: Path, wanted: int) -> int:
    """Returns the wanted length, or the longest sequence that the model in a folder has positions for."""
    facts = read_facts(folder)
    facts = {**(facts.get("text_config") or {}), **facts}
    longest = facts.get("max_position_embeddings") or facts.get("n_positions") or wanted
    return min(wanted, int(longest))


def image_size(folder: Path) -> tuple[int, int, int]:
    """Returns (channels, height, width) that the image model in a folder works on."""
    facts = {**read_facts(folder, "preprocessor_config.json"), **read_facts(folder)}
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
    """Returns the inputs of a transformers folder for its task: pixels, or token ids with a mask and what else it reads.

    Raises:
        InvalidRecipe: the task is not one whose inputs are known.
    """
    if model.task in IMAGE_TASKS:
        return (GraphInput("pixel_values", "float32", ("batch", *image_size(model.folder))),)
    if model.task not in TEXT_TASKS:
        raise InvalidRecipe(
            Problem(
                "unknown-task",
                f"the inputs of a model for '{model.task}' are not known",
                remedy="use a PyTorchModel with dummy_inputs_func and io_config",
            )
        )
    names = ["input_ids", "attention_mask"]
    if _reads_token_types(model.folder):
        names.append("token_type_ids")
    return tuple(GraphInput(name, "int64", ("batch", "sequence")) for name in names)


TEXT_TASKS = (
    "fill-mask", "feature-extraction", "sentence-similarity", "text-classification", "sequence-classification",
    "token-classification", "question-answering", "text-generation",
)  # fmt: skip


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
    facts = read_facts(folder)
    vocabulary = int(facts.get("vocab_size") or (facts.get("text_config") or {}).get("vocab_size") or 1000)
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
