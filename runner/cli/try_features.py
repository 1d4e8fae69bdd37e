"""What `recipe try` does with a model that turns pictures into features: shows the vectors, and which pictures are alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.errors import DataUnavailable, UsageError

if TYPE_CHECKING:
    import numpy as np

    from runner.cli.try_tasks import Asked

    Array = np.ndarray[Any, Any]

_HEAD = 6


def show_features(asked: Asked) -> None:
    """Prints each picture's vector, scaled to length 1, and how near the others are to the first; of a folder, all in it.

    Raises:
        UsageError: nothing is named.
        DataUnavailable: something named is no picture, nor a folder of pictures.
    """
    from runner.data.local import Raw, process_images
    from runner.evaluation.forward import open_forward, outputs_of
    from runner.evaluation.retention import unit

    files = _pictures(asked.inputs)
    examples = process_images(Raw(files, [None] * len(files)), asked.model)
    session = open_forward(asked.model, asked.threads, asked.provider)
    features = [_feature(outputs_of(session, _batch_of_one(inputs)), asked.model.folder) for inputs, _ in examples.items]
    _tell(asked, files, unit(_stacked(features)))


def _pictures(named: Sequence[str]) -> list[Path]:
    from runner.data.pictures import pictures

    found: dict[Path, Path] = {}  # each file once
    for text in named:
        path = Path(text).expanduser()
        if not path.exists():
            raise DataUnavailable(f"there is no file '{path}'", "an image model takes paths of image files and of folders")
        for file in pictures(path) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    if not found:
        raise UsageError("empty-input", "there is nothing to look at", "give the path of a picture")
    return list(found.values())


def _batch_of_one(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[None] for name, array in inputs.items()}


def _feature(outputs: Mapping[str, Array], folder: Path) -> Array:
    """Returns the vector of the whole picture, [width]: that of the class token, or the mean over patches or places."""
    from runner.models.inputs import pools_first_token

    hidden: Array = next(iter(outputs.values()))[0]
    if hidden.ndim == 1:
        return hidden
    if hidden.ndim == 3:  # of a convolutional network: [channels, height, width]
        mean: Array = hidden.mean(axis=(1, 2))
        return mean
    vector: Array = hidden[0] if pools_first_token(folder) else hidden.mean(axis=0)
    return vector


def _stacked(features: Sequence[Array]) -> Array:
    import numpy as np

    stacked: Array = np.stack(features)
    return stacked


def _tell(asked: Asked, files: Sequence[Path], vectors: Array) -> None:
    similarities = vectors @ vectors.T
    if asked.as_json:
        told = {"inputs": [str(file) for file in files], "vectors": vectors.tolist(), "cosine": similarities.tolist()}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    for file, vector in zip(files, vectors, strict=True):
        head = " ".join(f"{value:+.4f}" for value in vector[:_HEAD])
        click.echo(f"[{head} …] {len(vector)} numbers  {file.name}")
    if len(files) > 1:
        click.echo(f"\nnearest to {click.style(files[0].name, bold=True)}")
        for at in similarities[0, 1:].argsort()[::-1] + 1:
            click.echo(f"{similarities[0, at]:7.3f}  {files[at].name}")
