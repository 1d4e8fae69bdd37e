"""Labelled words into labelled tokens, for token classification: Olive's `ner_huggingface_preprocess`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.data.hub import first_rows, require_columns
from runner.data.local import Examples
from runner.models.handle import ModelHandle

SPECIAL_LABEL = 0  # what a token of no word gets: "outside"


def label_tokens(
    dataset: Any,
    model: ModelHandle,
    input_cols: Sequence[str] = ("tokens",),
    label_col: str = "ner_tags",
    max_samples: int | None = None,
    max_length: int | None = None,
    padding: bool | str = True,
    truncation: bool = True,
    is_split_into_words: bool = True,
    add_special_tokens: bool = False,
) -> Examples:
    """Returns token ids, and for each token the label of its word.

    Labels are of the IOB scheme with an odd number for the beginning of an entity and the even one behind it for its
    continuation: tokens of a word behind its first continue the entity.

    Args:
        dataset: rows with a list of words and a list of their labels.
        model: its folder holds the tokenizer.
        input_cols: the column of words.
        label_col: the column of labels.
        max_samples: take only so many rows.
        max_length: longest sequence; what the tokenizer says, at most 512, by default.
        padding: ``max_length`` fills every sequence up; otherwise each batch is filled up to its longest.
        truncation: cut what is longer.
        is_split_into_words: a row's text is a list of words.
        add_special_tokens: put the tokenizer's special tokens around a sequence.

    Raises:
        DataUnavailable: there is no row, or a column does not exist.
    """
    import numpy as np

    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(model)
    longest = max_length or min(int(tokenizer.model_max_length), 512)
    rows = first_rows(dataset, max_samples)
    require_columns(rows[0], [*input_cols, label_col])
    items = []
    for row in rows:
        encoded = tokenizer(
            *(row[name] for name in input_cols if row[name]),
            is_split_into_words=is_split_into_words,
            add_special_tokens=add_special_tokens,
            truncation=truncation,
            max_length=longest,
            padding="max_length" if padding == "max_length" else False,
        )
        labels = _of_tokens(row[label_col], encoded.word_ids(0))
        items.append(
            ({name: np.asarray(values, np.int64) for name, values in encoded.items()}, np.asarray(labels, dtype=np.int64))
        )
    return Examples(items, {"input_ids": tokenizer.pad_token_id or 0})


def _of_tokens(labels: Sequence[int], words: Sequence[int | None]) -> list[int]:
    found = []
    for at, word in enumerate(words):
        if word is None:
            found.append(SPECIAL_LABEL)
            continue
        label = int(labels[word])
        continues = at > 0 and words[at - 1] == word
        found.append(label + 1 if continues and label % 2 else label)
    return found
