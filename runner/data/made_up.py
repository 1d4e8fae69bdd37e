"""Data that nobody collected: dummy inputs of given shapes, prompts with a key-value cache, and rows in place of the hub's."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import DataUnavailable
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput, made_up, model_inputs, vocabulary_size

SAMPLES = 4
_ROWS = 16
_TEXT = (
    "river morning seven quiet garden letter window carried never again small bright people water under bridge stone "
    "answered slowly the a of and to in was had with for not but they she he it once before after rain winter road"
)
_WORDS_A_ROW = 48


def dummy_batches(parameters: Mapping[str, Any], batch_size: int, model: ModelHandle) -> list[dict[str, Any]]:
    """Returns batches of the shapes in the parameters where these give them, of the model's own otherwise.

    Args:
        parameters: `input_shapes`, `input_names`, `input_types` and `max_samples`, all of them optional.
        batch_size: leading axis where the model leaves it open.
        model: the model.

    Raises:
        DataUnavailable: names, shapes and types differ in number.
    """
    shapes = parameters.get("input_shapes")
    inputs = model_inputs(model)
    if shapes:
        names = parameters.get("input_names") or [one.name for one in inputs]
        types = parameters.get("input_types") or ["float32"] * len(shapes)
        if not len(shapes) == len(names) == len(types):
            raise DataUnavailable("input_names, input_shapes and input_types of the dummy data differ in length")
        inputs = tuple(GraphInput(*one) for one in zip(names, types, map(tuple, shapes), strict=True))
    count = int(parameters.get("max_samples") or SAMPLES)
    sizes = {str(one.shape[0]): batch_size for one in inputs if one.shape and isinstance(one.shape[0], str)}
    return [made_up(inputs, model.folder, sizes, seed) for seed in range(count)]


def prompt_batches(
    model: ModelHandle,
    batch_size: int,
    seq_len: int = 128,
    past_seq_len: int = 128,
    max_samples: int | None = None,
    ignore_input_fields: Sequence[str] = (),
    **_: Any,
) -> list[dict[str, Any]]:
    """Returns batches of random tokens behind a random key-value cache.

    Args:
        model: the model; a graph with ``past...`` inputs gets the cache, another one the tokens alone.
        batch_size: leading axis.
        seq_len: new tokens.
        past_seq_len: tokens that the cache holds.
        max_samples: batches.
        ignore_input_fields: inputs that are left out.
    """
    import numpy as np

    inputs = [one for one in model_inputs(model) if one.name not in ignore_input_fields]
    cached = past_seq_len if any(one.name.startswith("past") for one in inputs) else 0
    vocabulary = vocabulary_size(model.folder)
    made = []
    for seed in range(int(max_samples or SAMPLES)):
        generator = np.random.default_rng(seed)
        batch: dict[str, Any] = {}
        for one in inputs:
            if "mask" in one.name:
                batch[one.name] = np.ones((batch_size, cached + seq_len), one.dtype)
            elif "position" in one.name:
                batch[one.name] = np.tile(np.arange(cached, cached + seq_len, dtype=one.dtype), (batch_size, 1))
            elif one.name.startswith("past"):
                shape = _cache_shape(one, batch_size, cached)
                batch[one.name] = generator.standard_normal(shape).astype(one.dtype)
            else:
                batch[one.name] = generator.integers(0, vocabulary, (batch_size, seq_len)).astype(one.dtype)
        made.append(batch)
    return made


def _cache_shape(one: GraphInput, batch_size: int, cached: int) -> list[int]:
    return [
        axis if isinstance(axis, int) and axis > 0 else batch_size if at == 0 else cached for at, axis in enumerate(one.shape)
    ]


def stand_in_rows(columns: Sequence[str], labels: int, label_col: str | None, words: bool, chat: bool) -> list[dict[str, Any]]:
    """Returns rows in place of a hub data set's: sentences of made-up sense, the same at every call.

    Args:
        columns: columns of text.
        labels: classes that labels are drawn from.
        label_col: column of the label.
        words: text columns hold lists of words, and the label column a label for each.
        chat: text columns hold chat messages.
    """
    from random import Random

    random = Random(0)  # noqa: S311
    vocabulary = _TEXT.split()
    rows = []
    for _ in range(_ROWS):
        chosen = random.choices(vocabulary, k=_WORDS_A_ROW)
        text = " ".join(chosen).capitalize() + "."
        value: Any = chosen if words else [{"role": "user", "content": text}] if chat else text
        row: dict[str, Any] = dict.fromkeys(columns, value)
        if label_col:
            row[label_col] = [random.randrange(labels) for _ in chosen] if words else random.randrange(labels)
        rows.append(row)
    return rows


def placeholders(template: str) -> list[str]:
    """Returns the columns that a text with {column} in it names."""
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))
