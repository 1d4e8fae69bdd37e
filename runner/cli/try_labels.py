"""`recipe try` for models of pictures and texts: ranks labels for a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.errors import DataUnavailable, UsageError
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    from runner.cli.try_tasks import Asked


def rank_labels(asked: Asked) -> None:
    """Prints how likely each label is for the picture, the likeliest first; all together make 1.

    Raises:
        UsageError: there is no picture with at least one label.
        DataUnavailable: the picture cannot be read.
    """
    import numpy as np

    from runner.evaluation.forward import open_forward, outputs_of

    picture, *labels = asked.inputs
    if not labels:
        raise UsageError("no-labels", "there is nothing to choose from", 'give a picture and labels: PICTURE "a dog" "a cat"')
    inputs = _inputs(asked.model, Path(picture).expanduser(), labels)
    logits = outputs_of(open_forward(asked.model, asked.threads, asked.provider), inputs)["logits_per_image"][0]
    raised = np.exp(logits - logits.max())
    shares = [float(share) for share in raised / raised.sum()]
    ranked = sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1])
    if asked.as_json:
        click.echo(json.dumps({"input": picture, "labels": ranked}, ensure_ascii=False, indent=2))
        return
    for label, share in ranked:
        click.echo(f"{share:7.1%}  {label}")


def _inputs(model: ModelHandle, picture: Path, labels: list[str]) -> dict[str, Any]:
    """Returns token ids and mask [labels, tokens], and the pixels of one picture."""
    from runner.cli.try_tasks import encode
    from runner.data.local import Raw, process_images

    if not picture.is_file():
        raise DataUnavailable(f"there is no file '{picture}'", "the first input is the path of a picture, labels follow")
    pixels = process_images(Raw([picture], [None]), model).items[0][0]
    return {**encode(model, labels), **{name: array[None] for name, array in pixels.items()}}
