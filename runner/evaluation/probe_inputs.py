"""Small deterministic inputs that show whether two models compute the same: real words, noise images, random arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.evaluation.probe_drawing import component_inputs
from runner.evaluation.probe_speech import TASK, speech_inputs
from runner.models.handle import ModelHandle
from runner.models.tasks import task_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

SEED = 7
GENERATES = ("text-generation", "image-text-to-text")  # tasks whose models go on from a text
PROMPT_TOKENS = 96  # longer than the window of a tiny twin, so that window layers show themselves
PASSAGE = (
    "The library stood at the end of the street, between the bakery and the river. Every Thursday the old teacher came "
    "with a basket of books, put them on the counter one by one and told the librarian what was wrong with each of them. "
    "The first had too many heroes, the second too few, and the third had been written by somebody who had never seen a "
    "horse. Then she took home four others. In forty years she had read more than six thousand of them, and she still "
    "could not say which was best. When the town wanted to close the library, she sold her house, bought the building "
    "and moved into its attic."
)
PAIR = ("A short sentence.", "This one is longer than the other, so that the shorter of the two has to be padded at its end.")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")

Shape = Sequence[int | str | None]


class NoProbe(Exception):
    """No inputs can be made for a model; the text says why."""


def probe_inputs(source: ModelHandle, wanted: Mapping[str, Shape] | None = None) -> Arrays:
    """Returns inputs for `source`, by name, the leading axis being the batch.

    Args:
        source: the model whose tokenizer, image settings, script or graph say what inputs look like.
        wanted: shapes of a graph's inputs; a fixed first or second axis of it decides batch and length.

    Raises:
        NoProbe: nothing says what the inputs are.
    """
    shapes = dict(wanted or {})
    if source.kind == "pytorch":
        return {name: _sized(array, shapes.get(name, ())) for name, array in _scripted(source, list(shapes)).items()}
    if source.kind == "diffusers":
        return component_inputs(source, shapes)
    if source.task == TASK and "input_ids" not in shapes:
        return speech_inputs(source.folder)
    if any((source.folder / name).is_file() for name in _TOKENIZER_FILES):
        text = _text(source, shapes.get("input_ids", ()))
        return {**text, **_images(source.folder, shapes["pixel_values"])} if "pixel_values" in shapes else text
    if "input_ids" in shapes:
        raise NoProbe("no tokenizer lies beside the source model")
    if (source.folder / "preprocessor_config.json").is_file() or "pixel_values" in shapes:
        return _images(source.folder, shapes.get("pixel_values", ()))
    raise NoProbe("neither a tokenizer nor image settings lie beside the source model")


def random_inputs(shapes: Mapping[str, Shape], types: Mapping[str, str]) -> Arrays:
    """Returns random arrays of the given shapes; an open axis gets 2 where it is the first, 16 elsewhere."""
    random = np.random.default_rng(SEED)
    made: Arrays = {}
    for name, shape in shapes.items():
        sizes = [axis if isinstance(axis, int) and axis > 0 else 2 if at == 0 else 16 for at, axis in enumerate(shape)]
        kind = np.dtype(types.get(name, "float32"))
        if kind == np.bool_:
            made[name] = np.ones(sizes, dtype=kind)
        elif kind.kind in "iu":
            made[name] = random.integers(0, 2, sizes).astype(kind)
        else:
            made[name] = random.standard_normal(sizes).astype(kind)
    return made


def _fixed(shape: Shape, axis: int) -> int | None:
    size = shape[axis] if axis < len(shape) else None
    return size if isinstance(size, int) and size > 0 else None


def _text(source: ModelHandle, shape: Shape) -> Arrays:
    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(source)
    length = _fixed(shape, 1)
    if task_of(source).startswith(GENERATES) or (source.folder / "genai_config.json").is_file():
        tokens = tokenizer(PASSAGE)["input_ids"]
        wanted = length or min(PROMPT_TOKENS, len(tokens))
        repeated = (tokens * (wanted // len(tokens) + 1))[:wanted]
        ids = np.asarray([repeated] * (_fixed(shape, 0) or 1), dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = _fixed(shape, 0) or len(PAIR)
    texts = (list(PAIR) * wanted)[:wanted]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # what the mask hides needs a number only
    padding = {"padding": "max_length", "max_length": length, "truncation": True} if length else {"padding": True}
    encoded = tokenizer(texts, return_tensors="np", **padding)
    return {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}


def _images(folder: Path, shape: Shape) -> Arrays:
    height, width = _image_size(folder)
    size = (
        _fixed(shape, 0) or 2,
        _fixed(shape, 1) or _channels(folder),
        _fixed(shape, 2) or height,
        _fixed(shape, 3) or width,
    )
    return {"pixel_values": np.random.default_rng(SEED).standard_normal(size).astype(np.float32)}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _channels(folder: Path) -> int:
    return int(_read(folder / "config.json").get("num_channels", 3))


def _image_size(folder: Path) -> tuple[int, int]:
    processor = _read(folder / "preprocessor_config.json")
    size = processor.get("crop_size") or processor.get("size") or _read(folder / "config.json").get("image_size") or 224
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", 224)
        return int(size.get("height", edge)), int(size.get("width", edge))
    return (int(size[0]), int(size[1])) if isinstance(size, list) else (int(size), int(size))


def _scripted(source: ModelHandle, wanted: Sequence[str] = ()) -> Arrays:
    """Inputs of a scripted model: what its own function gives, or random ones by its io_config."""
    from runner.data.scripted_model import example_inputs, io_config

    config = io_config(source)
    given = example_inputs(source)
    if given is not None:
        return _named_arrays(given, config.input_names, wanted)
    if not config.input_shapes:
        raise NoProbe("the script names neither dummy_inputs_func nor an io_config with input_shapes")
    types = dict(zip(config.input_names, config.input_types, strict=False))
    return random_inputs(dict(zip(config.input_names, config.input_shapes, strict=True)), types)


def _sized(array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Returns an array with the sizes that a graph fixed: repeated or cut along each such axis."""
    for axis in range(min(array.ndim, len(shape))):
        size = _fixed(shape, axis)
        if size is not None and array.shape[axis] and size != array.shape[axis]:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def _named_arrays(given: Any, names: Sequence[str], wanted: Sequence[str] = ()) -> Arrays:
    """Returns inputs by name; unnamed ones stand in the order of io_config's names, or of the graph's inputs."""
    if not isinstance(given, Mapping):
        values = list(given) if isinstance(given, (tuple, list)) else [given]
        names = list(wanted) if len(names) < len(values) and len(wanted) == len(values) else names
        if len(names) < len(values):
            raise NoProbe("dummy_inputs_func gives unnamed inputs, and io_config names fewer of them")
        given = dict(zip(names, values, strict=False))
    arrays: Arrays = {}
    for name, value in given.items():
        if isinstance(value, (Mapping, list, tuple)) or not hasattr(value, "shape"):
            if value is None or isinstance(value, bool):
                continue  # a switch of forward, which is no input of a graph
            raise NoProbe(f"its input '{name}' is a {type(value).__name__} and no tensor")
        arrays[str(name)] = np.asarray(value)
    return arrays
