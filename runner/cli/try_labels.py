"""`recipe try` for models of pictures and texts: ranks labels for pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner.errors import DataUnavailable, UsageError
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np

    from runner.cli.try_tasks import Asked

    Array = np.ndarray[Any, Any]

F = TypeVar("F", bound=Callable[..., Any])
_BATCH = 8
_LISTS = (".txt", ".csv", ".tsv", ".md")
_HOW = 'give a picture and labels: PICTURE --labels "a dog,a cat"'


def _labels(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Returns the labels in a text, separated by commas, or in a file, one a line.

    Raises:
        UsageError: one of them is empty, or the file is not there or holds none.
    """
    if value is None:
        return ()
    path = Path(value).expanduser()
    try:
        text = path.read_text("utf-8-sig") if _is_file(path) else None
    except (OSError, UnicodeDecodeError) as error:
        cause = f"--labels: '{value}' cannot be read as text: {error}"
        raise UsageError("bad-labels", cause, "write one label a line, in UTF-8") from None
    if text is None and "," not in value and path.suffix.lower() in _LISTS:
        raise UsageError(
            "no-label-file", f"--labels: there is no file '{value}'", "give the path of a file with one label a line"
        )
    named = value.split(",") if text is None else [line for line in text.splitlines() if line.strip()]
    labels = tuple(label.strip() for label in named)
    if not labels or not all(labels):
        cause = f"--labels: there is an empty label in '{value}'" if text is None else f"--labels: '{value}' holds no label"
        raise UsageError("empty-label", cause, 'separate labels by commas: "a dog,a cat"; in a file write one a line')
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list of labels can be too long for a file's name
        return False


def label_option(function: F) -> F:
    """Adds the option that says what is ranked."""
    text = "What a picture may show, for a model of pictures and texts: separated by commas, or a file with one a line."
    return click.option("--labels", callback=_labels, metavar="TEXT|FILE", help=text)(function)


def rank_labels(asked: Asked) -> None:
    """Prints how likely each label is for each picture, the likeliest first; all together make 1.

    Beside it stands the cosine of the picture's and the label's embeddings, which no other label changes.

    Raises:
        UsageError: there is no picture with at least one label.
        DataUnavailable: a picture cannot be read.
    """
    from runner.evaluation.forward import open_forward

    pictures = asked.inputs if asked.labels else asked.inputs[:1]
    labels = _told_apart(asked.labels or asked.inputs[1:])
    if not labels:
        raise UsageError("no-labels", "there is nothing to choose from", _HOW)
    paths = [_picture(text) for text in pictures]
    texts = _texts(asked.model, labels)
    forward = open_forward(asked.model, asked.threads, asked.provider)
    ranked = [
        _ranking(labels, logits, cosines)
        for start in range(0, len(paths), _BATCH)
        for logits, cosines in _scores(forward, texts, _pixels(asked.model, paths[start : start + _BATCH]))
    ]
    (_print_json if asked.as_json else _print)(pictures, ranked)


def _told_apart(labels: Sequence[str]) -> list[str]:
    """Returns each label once: one that stands there twice would share its likelihood with itself."""
    single = list(dict.fromkeys(labels))
    if len(single) < len(labels):
        click.echo(f"{len(labels) - len(single)} labels that stand there twice are counted once", err=True)
    return single


def _picture(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise DataUnavailable(f"there is no file '{path}'", "the first input is the path of a picture, labels follow")
    return path


def _texts(model: ModelHandle, labels: Sequence[str]) -> dict[str, Array]:
    from runner.cli.try_tasks import encode

    return encode(model, labels)


def _pixels(model: ModelHandle, paths: Sequence[Path]) -> dict[str, Array]:
    """Returns the pixels of pictures, float32 [pictures, channels, height, width] by input name."""
    import numpy as np

    from runner.data.local import Raw, process_images

    items = [inputs for inputs, _ in process_images(Raw(paths, [None] * len(paths)), model).items]
    return {name: np.stack([one[name] for one in items]) for name in items[0]}


def _scores(forward: Any, texts: dict[str, Array], pixels: dict[str, Array]) -> list[tuple[Array, Array]]:
    """Returns (logits, cosines) of every picture, each [labels]."""
    from runner.evaluation.forward import outputs_of

    outputs = outputs_of(forward, {**texts, **pixels})
    cosines = outputs["image_embeds"] @ outputs["text_embeds"].T
    return list(zip(outputs["logits_per_image"], cosines, strict=True))


def _ranking(labels: Sequence[str], logits: Array, cosines: Array) -> list[tuple[str, float, float]]:
    """Returns (label, share, cosine), the likeliest first."""
    import numpy as np

    raised = np.exp(logits - logits.max())
    shares = raised / raised.sum()
    found = zip(labels, map(float, shares), map(float, cosines), strict=True)
    return sorted(found, key=lambda one: -one[1])


def _print(pictures: Sequence[str], ranked: Sequence[Sequence[tuple[str, float, float]]]) -> None:
    for picture, ranking in zip(pictures, ranked, strict=True):
        if len(pictures) > 1:
            click.echo(picture)
        for label, share, cosine in ranking:
            click.echo(f"{share:7.1%}  {cosine:+.3f}  {label}")
    if ranked and len(ranked[0]) == 1:
        click.echo("of one label the share says nothing: compare its cosine, or give several", err=True)


def _print_json(pictures: Sequence[str], ranked: Sequence[Sequence[tuple[str, float, float]]]) -> None:
    told = [
        {
            "input": picture,
            "labels": [(label, share) for label, share, _ in ranking],
            "cosine": {label: cosine for label, _, cosine in ranking},
        }
        for picture, ranking in zip(pictures, ranked, strict=True)
    ]
    click.echo(json.dumps(told[0] if len(told) == 1 else told, ensure_ascii=False, indent=2))
