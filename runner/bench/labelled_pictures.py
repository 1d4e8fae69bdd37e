"""Pictures that lie in folders named after what they show: what both sides of a benchmark are asked, and the right answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from runner.bench.scenarios import BATCH
from runner.data.local import IMAGE_FILES, Raw, process_images
from runner.errors import DataUnavailable, did_you_mean
from runner.models.handle import ModelHandle
from runner.models.inputs import longest_text, read_facts
from runner.models.torch_source import load_tokenizer

MOST = 1000
CAPTION = "a photo of a {}."  # the one that CLIP's authors begin with

Arrays = dict[str, np.ndarray[Any, Any]]


def labelled_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Returns the pictures in the folders right below, each with that folder's name; evenly chosen where they are too many.

    A folder of pictures without folders in it gives none: nobody says what they show.
    """
    below = sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []
    found = [(file, one.name) for one in below for file in sorted(one.iterdir()) if file.suffix.lower() in IMAGE_FILES]
    chosen = np.linspace(0, len(found) - 1, min(len(found), MOST)).round().astype(int)
    return [found[at] for at in chosen]


def classes_of(model: ModelHandle, names: Sequence[str]) -> dict[str, int]:
    """Returns the number of the model's class that each name stands for: a whole label, one of its synonyms, or a number.

    Upper case, and `_` or `-` for a space, make no difference.

    Raises:
        DataUnavailable: the model has no class, or several, of a name.
    """
    labels: Mapping[str, str] = read_facts(model.folder).get("id2label") or {}
    whole: dict[str, set[int]] = {}
    parts: dict[str, set[int]] = {}
    for number, label in labels.items():
        for name in (number, label):
            whole.setdefault(_plain(name), set()).add(int(number))
        for synonym in label.split(","):
            parts.setdefault(_plain(synonym), set()).add(int(number))
    known = {**parts, **whole}
    return {name: _only_class(name, known) for name in names}


def _only_class(name: str, known: Mapping[str, set[int]]) -> int:
    meant = sorted(known.get(_plain(name), ()))
    if not meant:
        raise DataUnavailable(f"the model has no class '{name}'", did_you_mean(_plain(name), known))
    if len(meant) > 1:
        several = ", ".join(map(str, meant))
        raise DataUnavailable(f"'{name}' names the classes {several} of the model", "name the folder by the class's number")
    return meant[0]


def captions(model: ModelHandle, names: Sequence[str]) -> Arrays:
    """Returns the tokens of a caption for each name, int64 [names, tokens] by input name.

    Raises:
        DataUnavailable: there is one name only, two give the same caption, or one is longer than the model reads.
    """
    tokenizer = load_tokenizer(model)
    texts = _captions(names)
    longest = longest_text(tokenizer, model.folder)
    for name, text in texts.items():
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if tokens > longest:
            cause = f"the caption of '{name}' has {tokens} tokens, and the model reads {longest}"
            raise DataUnavailable(cause, "give the folder a shorter name")
    encoded = tokenizer(list(texts.values()), return_tensors="np", padding=True)
    return {name: np.asarray(array, np.int64) for name, array in encoded.items()}


def _captions(names: Sequence[str]) -> dict[str, str]:
    """Returns the caption of each name; an accent may be a character of its own in a folder's name, and is none in a text."""
    texts = {name: CAPTION.format(re.sub(r"[_-]+", " ", normalize("NFC", name)).strip()) for name in names}
    if len(texts) < 2:
        raise DataUnavailable(
            f"all pictures lie in the folder '{names[0]}': there is nothing to choose from", "add a folder for each other class"
        )
    of_text: dict[str, str] = {}
    for name, text in texts.items():
        if of_text.setdefault(text, name) != name:
            raise DataUnavailable(f"the folders '{of_text[text]}' and '{name}' give the same caption", "put them together")
    return texts


def picture_batches(model: ModelHandle, files: Sequence[Path]) -> Iterator[Arrays]:
    """Yields the pixels of `BATCH` pictures at a time, float32 [pictures, channels, height, width] by input name."""
    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        items = [inputs for inputs, _ in process_images(Raw(chunk, [None] * len(chunk)), model).items]
        yield {name: np.stack([one[name] for one in items]) for name in items[0]}


def _plain(name: str) -> str:
    return re.sub(r"[_\s-]+", " ", name).strip().casefold()
