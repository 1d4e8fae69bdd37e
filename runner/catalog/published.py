"""What can be said of a model without its weights: off a local folder, from the hub, or from what is written down here."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from runner.catalog.lint.online import HuggingFace, Unreachable
from runner.errors import ModelUnavailable, UsageError
from runner.models.checkpoint import check_safetensors
from runner.models.hub import cached_snapshot, download_config
from runner.models.model_cards import card_of
from runner.models.twin import architecture_of, context_of, is_known
from runner.models.twin_table import Twin
from runner.models.weight_count import count_weights
from runner.recipe.info import HubSource

_HALF_PRECISION_TASKS = ("text-generation",)  # published in 16 bits a weight, as a rule; the others in 32


@dataclass(frozen=True)
class Fact:
    """A fact and where it is from.

    Attributes:
        value: the fact.
        source: what `provenance` of info.yml calls its source.
        why: the same, for people.
    """

    value: Any
    source: str
    why: str


@dataclass
class Published:
    """What is known of a model.

    Attributes:
        twin: its architecture.
        folder: local folder with its config.json, where there is one.
        facts: name of a field of `ModelFacts` to the fact; what is unknown is missing.
        notes: what people should know.
    """

    twin: Twin
    folder: Path | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def published(model: str, task: str | None, offline: bool, say: Callable[[str], None]) -> Published:
    """Returns what is known of a model: of a local folder, else from the hub where it answers, else from the tables.

    Args:
        model: a Hugging Face id, or a folder with a config.json.
        task: Hugging Face task; the architecture's own when None.
        offline: ask nobody.
        say: told what is asked for.

    Raises:
        InvalidRecipe: no architecture is known for the id.
        ModelUnavailable: the folder's files cannot be read.
        UsageError: the hub has no such model.
    """
    folder = Path(model) if (Path(model) / "config.json").is_file() else None
    asked = None
    if folder is None and not offline:
        say(f"asking the hub for {model}")
        asked = _ask_hub(model)
    configuration = folder or _configuration(model, offline or asked is None, say)
    known = Published(architecture_of(configuration or model), configuration)
    if known.twin.stands_in:
        known.notes.append(f"no facts are known of {model}: the architecture of {known.twin.pattern} stands in for it")
    if asked is not None:
        known.facts |= asked
    elif folder is None and not offline:
        known.notes.append("the hub cannot be reached: facts are from the tables of this runner, unchecked")
    _from_shapes(known, model, (task or known.twin.task).removesuffix("-with-past"))
    if (card := card_of(model)) is not None:
        known.facts.setdefault("licence", Fact(card.licence, "model card", "its model card, as this runner knows it"))
        known.facts.setdefault("gated", Fact(card.gated, "hub", "its model card, as this runner knows it"))
    return known


def _ask_hub(model: str) -> dict[str, Fact] | None:
    """What the hub says; None where it does not answer."""
    try:
        told = HuggingFace().facts(model)
    except Unreachable:
        return None
    if told is None:
        cause = f"the hub has no model '{model}', or it is private"
        raise UsageError("model-not-found", cause, "correct the id, or log in with 'hf auth login'; --offline asks nobody")
    sources = {"licence": "model card", "context_length": "config.json"}
    return {
        name: Fact(value, sources.get(name, "hub"), "the hub says so")
        for name, value in asdict(told).items()
        if value is not None
    }


def _configuration(model: str, offline: bool, say: Callable[[str], None]) -> Path | None:
    """A folder with the configuration of an id that the tables do not know, where it can be had."""
    source = HubSource(hub=model)
    if is_known(model):
        return None
    if (snapshot := cached_snapshot(source)) is not None or offline:
        return snapshot
    try:
        return download_config(source, say)
    except ModelUnavailable:
        return None


def _from_shapes(known: Published, model: str, task: str) -> None:
    """Adds what the weights' own headers, else the architecture's shapes, tell."""
    measured = _measure(known.folder) if known.folder else None
    if measured is not None:
        weights, size = measured
        known.facts.setdefault("parameters", Fact(weights, "weights", "read off the weights"))
        known.facts.setdefault("download_mb", Fact(megabytes(size), "weights", "size of the weights' files"))
    counted = count_weights(str(known.folder or model), task)
    if counted is not None:
        known.facts.setdefault("parameters", Fact(counted.total, "architecture", "counted on the architecture's shapes"))
    if not known.twin.stands_in and (context := context_of(known.twin)) is not None:
        known.facts.setdefault("context_length", Fact(context, "config.json", "positions of its config.json"))


def download_from(parameters: int, task: str) -> Fact:
    """Returns the download in MB of that many weights, in the width that models of the task are published in."""
    width = 2 if task in _HALF_PRECISION_TASKS else 4
    return Fact(megabytes(parameters * width), "architecture", f"{width} bytes a weight")


def megabytes(size: int) -> float:
    """Returns bytes as MB, to a tenth; small sizes to four digits, so that none becomes nothing."""
    return round(size / 1e6, 1) if size >= 1e6 else float(f"{size / 1e6:.4g}")


def _measure(folder: Path) -> tuple[int, int] | None:
    """Returns (weights, bytes) of a folder's safetensors files, from their headers alone; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    for file in files:
        check_safetensors(file)
    return sum(map(_weights_in, files)), sum(file.stat().st_size for file in files)


def _weights_in(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
