"""Data sets that lie beside a recipe: text files and image folders, turned into model inputs by the model's own processor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.data.image_file import read_image
from runner.errors import DataUnavailable
from runner.models.handle import ModelHandle

IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Examples:
    """Model inputs, one example each.

    Attributes:
        items: (inputs, label) pairs, to be gone through; inputs map a name to an array without a batch axis, the label is
            None where unknown.
        padding: what fills up an input that is shorter than the longest of its batch; zero unless named.
    """

    items: Iterable[tuple[dict[str, Any], Any]]
    padding: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Contents as they lie on disk: texts or image files, each with its label or None."""

    contents: Sequence[str | tuple[str, ...] | Path]
    labels: Sequence[Any]


def sentences(folder: Path, path: str, labels: str | None = None, max_samples: int | None = None) -> Raw:
    """Reads a text file in UTF-8, a sentence a line, empty lines left out.

    Args:
        folder: what `path` and `labels` are relative to.
        path: the file.
        labels: a JSON file with a list of labels, one a sentence.
        max_samples: read only so many.

    Raises:
        DataUnavailable: a file is missing or empty, or the numbers of sentences and labels differ.
    """
    lines = [line.strip() for line in _existing(folder, path).read_text(encoding="utf-8").splitlines()]
    texts = [line for line in lines if line]
    if not texts:
        raise DataUnavailable(f"{path} has no sentences in it")
    known = json.loads(_existing(folder, labels).read_text(encoding="utf-8")) if labels else [None] * len(texts)
    if len(known) != len(texts):
        raise DataUnavailable(f"{labels} has {len(known)} labels for {len(texts)} sentences")
    return Raw(texts[:max_samples], known[:max_samples])


def images(folder: Path, path: str, labels: str | None = None, max_samples: int | None = None) -> Raw:
    """Lists a folder of images, in the order of their names.

    Args:
        folder: what `path` and `labels` are relative to.
        path: the folder.
        labels: a JSON file that maps file names to labels; without it there are none.
        max_samples: take only so many.

    Raises:
        DataUnavailable: the folder is missing or holds no images, or an image has no label.
    """
    found = sorted(file for file in _existing(folder, path).iterdir() if file.suffix.lower() in IMAGE_FILES)[:max_samples]
    if not found:
        raise DataUnavailable(f"{path} has no images in it", f"images end in {', '.join(IMAGE_FILES)}")
    if not labels:
        return Raw(found, [None] * len(found))
    known = json.loads(_existing(folder, labels).read_text(encoding="utf-8"))
    unlabelled = [file.name for file in found if file.name not in known]
    if unlabelled:
        raise DataUnavailable(f"{labels} has no label for {', '.join(unlabelled[:5])}")
    return Raw(found, [known[file.name] for file in found])


def _existing(folder: Path, path: str) -> Path:
    found = folder / Path(path.replace("\\", "/")).expanduser()
    if not found.exists():
        raise DataUnavailable(f"there is no '{path}' in {folder}", "paths are relative to the configuration")
    return found


def tokenize(
    raw: Raw, model: ModelHandle, max_length: int | None = None, padding: bool | str = False, truncation: bool = True
) -> Examples:
    """Turns texts into token ids with the tokenizer in the model folder.

    Args:
        raw: texts, or tuples of a text and its pair.
        model: its folder holds the tokenizer.
        max_length: longest sequence; what the tokenizer says, at most 512, by default.
        padding: ``max_length`` fills every sequence up; otherwise each batch is filled up to its longest.
        truncation: cut what is longer.
    """
    import numpy as np

    from runner.models.torch_source import load_tokenizer

    tokenizer = load_tokenizer(model)
    longest = max_length or min(int(tokenizer.model_max_length), 512)
    items = []
    for content, label in zip(raw.contents, raw.labels, strict=True):
        parts = content if isinstance(content, tuple) else (content,)
        encoded = tokenizer(
            *parts, truncation=truncation, max_length=longest, padding="max_length" if padding == "max_length" else False
        )
        items.append(({name: np.asarray(values, np.int64) for name, values in encoded.items()}, label))
    return Examples(items, {"input_ids": tokenizer.pad_token_id or 0})


def process_images(raw: Raw, model: ModelHandle) -> Examples:
    """Turns image files into pixels (channels, height, width) with the processor that preprocessor_config.json names.

    A file is read when its turn comes, which raises DataUnavailable where it is not a readable image.

    Raises:
        DataUnavailable: the model folder has no processor.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(model.folder, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataUnavailable(f"{model.folder} has no image processor that loads: {error}") from error

    def pixels(file: Path) -> dict[str, Any]:
        return {name: values[0] for name, values in processor(read_image(file), return_tensors="np").items()}

    return Examples(_Pictures([Path(str(file)) for file in raw.contents], raw.labels, pixels))


@dataclass(frozen=True)
class _Pictures:
    """Inputs and labels of pictures, made one at a time: thousands take no more memory than one."""

    files: Sequence[Path]
    labels: Sequence[Any]
    pixels: Callable[[Path], dict[str, Any]]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        return ((self.pixels(file), label) for file, label in zip(self.files, self.labels, strict=True))
