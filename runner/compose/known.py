"""What is known of a model, and which recipe of the catalogue is about it: by its id, or by what lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.catalog.discover import Entry, catalog_root, list_entries
from runner.catalog.published import Published, published
from runner.compose.subject import Subject
from runner.errors import InvalidRecipe, UsageError
from runner.models.checkpoint import read_json
from runner.models.digest import sha256_of_file
from runner.models.lock import NAME as LOCK
from runner.models.tasks import TASKS, WITH_PAST, task_of_architecture
from runner.models.twin_table import Twin
from runner.templating.kinds import Kind, kind_of

_DRAWS = "text-to-image"


@dataclass(frozen=True)
class Known:
    """A model, and what is known of it.

    Attributes:
        subject: the model, with its task where that is known.
        twin: its architecture; None where nothing says it.
        entry: the catalogue's recipe that is about it.
        why: what tells that it is; empty without a recipe.
        notes: what people should know.
    """

    subject: Subject
    twin: Twin | None = None
    entry: Entry | None = None
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """Returns transformers' model type; empty where it is not known."""
        return self.twin.model_type if self.twin else ""

    @property
    def kind(self) -> Kind | None:
        """Returns the kind of a Hugging Face model; None of any other model, and where no pipeline serves it."""
        return kind_of(self.subject.task, self.architecture) if self.twin and self.subject.task else None


def look_up(subject: Subject, catalog: Path | None, offline: bool, say: Callable[[str], None] = lambda _: None) -> Known:
    """Returns what is known of a model: nothing beyond itself unless it is one of Hugging Face's or draws.

    Args:
        subject: the model.
        catalog: folder of recipes; the nearest when None.
        offline: ask nobody.
        say: told what is asked for.

    Raises:
        UsageError: the hub has no such model, or its architecture reads nothing that the task gives.
    """
    if subject.kind not in ("hf", "diffusers"):
        return Known(subject)
    entries = list_entries(catalog_root(catalog)).entries
    drawing = recipe_of(subject, None, entries)
    if drawing is not None and drawing[0].info.model.task == _DRAWS:
        return Known(replace(subject, kind="diffusers", task=_DRAWS), None, *drawing)
    if subject.kind == "diffusers":
        return Known(subject)
    try:
        facts = published(subject.word, subject.task, offline, say)
    except InvalidRecipe as error:
        if error.problems[0].rule != "no-tiny-twin":
            raise
        return Known(subject)
    _check_task(subject.task, facts)
    found, notes = recipe_of(subject, facts, entries), tuple(facts.notes)
    if found is not None and subject.task not in (None, found[0].info.model.task):
        notes += (f"the catalogue's recipe {found[0].info.name} is for {found[0].info.model.task}",)
        found = None
    task = subject.task or (found[0].info.model.task if found else facts.twin.task)
    return Known(replace(subject, task=task), facts.twin, found[0] if found else None, found[1] if found else "", notes)


def _check_task(task: str | None, published: Published) -> None:
    """Refuses a task for which a model reads the wrong thing, such as one of pictures for a language model.

    A head whose name is known tells what a model reads, or else the tables; what else does not go together, the run tells.
    """
    own: str | None = published.twin.task
    if published.folder is not None:
        config = read_json(published.folder / "config.json")
        own = task_of_architecture((config.get("architectures") or [""])[0])
    own = (own or "").removesuffix(WITH_PAST)
    asked = TASKS.get((task or "").removesuffix(WITH_PAST))
    if asked is None or own not in TASKS or set(asked.reads) & set(TASKS[own].reads):
        return
    reads, given = (" and ".join(TASKS[one].reads) for one in (own, str(task).removesuffix(WITH_PAST)))
    raise UsageError(
        "wrong-task",
        f"a {published.twin.model_type} is no model for '{task}': it reads {reads}, and the task gives {given}",
        f"name the task that it was made for, {own}, or none",
    )


def recipe_of(subject: Subject, published: Published | None, entries: Sequence[Entry]) -> tuple[Entry, str] | None:
    """Returns the recipe that is about a model, and what tells so; None where none is.

    Args:
        subject: the model.
        published: what is known of it.
        entries: the recipes of the catalogue.
    """
    if subject.kind not in ("hf", "diffusers"):
        return None
    folder = subject.folder
    if folder is None:
        return _by_id(subject.word, entries, "the catalogue has a recipe of this model")
    named = _named(folder)
    return (
        _by_files(folder, entries)
        or (_by_id(named, entries, f"its configuration says that it is {named}") if named else None)
        or _by_shape(folder, published, entries)
    )


def _by_id(model: str, entries: Sequence[Entry], why: str) -> tuple[Entry, str] | None:
    found = next((entry for entry in entries if entry.info.model.id.lower() == model.lower()), None)
    return (found, why) if found else None


def _named(folder: Path) -> str | None:
    """The id that a folder's configuration says it is from."""
    for name in ("config.json", "model_index.json"):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_text(encoding="utf-8")).get("_name_or_path")
            if told:
                return str(told)
    return None


def _by_files(folder: Path, entries: Sequence[Entry]) -> tuple[Entry, str] | None:
    """The recipe whose lock names exactly these weights."""
    for entry in entries:
        try:
            files = json.loads((entry.folder / LOCK).read_text(encoding="utf-8"))["files"]
            weights = {one["file"]: one for one in files if one["file"].endswith(".safetensors")}
        except (OSError, ValueError, LookupError, TypeError):
            continue
        same_sizes = weights and all(
            (folder / name).is_file() and (folder / name).stat().st_size == one["bytes"] for name, one in weights.items()
        )
        if same_sizes and all(sha256_of_file(folder / name) == one["sha256"] for name, one in weights.items()):
            return entry, f"its weights are those of {entry.info.model.id}, file by file"
    return None


def _by_shape(folder: Path, published: Published | None, entries: Sequence[Entry]) -> tuple[Entry, str] | None:
    """The recipe of the folder's name, where architecture and number of weights are the same."""
    counted = published.facts.get("parameters") if published else None
    if published is None or counted is None:
        return None
    name = folder.name.lower()
    for entry in entries:
        model = entry.info.model
        names = {entry.info.name, *entry.info.aliases, model.id.lower().rpartition("/")[2], model.id.lower().replace("/", "_")}
        if name in names and entry.info.arch == published.twin.model_type and _about(model.parameters, counted.value):
            return entry, f"it is called like {model.id}, and has its architecture and number of weights"
    return None


def _about(one: int | None, other: int) -> bool:
    """Says whether both count the same model: a head that is the embedding may be counted twice."""
    return one is not None and 0.7 <= one / other <= 1.05
