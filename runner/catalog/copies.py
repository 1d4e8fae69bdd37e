"""A recipe made from another: the folder under a new name, which remembers where it is from."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.catalog.discover import Entry, list_entries, read_entry
from runner.catalog.names import NAME_REMEDY, is_name
from runner.catalog.published import published
from runner.catalog.scaffold import MODEL_ID, maintainer, title_of
from runner.errors import InvalidRecipe, UsageError
from runner.models.digest import sha256_of_file
from runner.models.lock import NAME as LOCK
from runner.recipe.folder import info_file
from runner.recipe.info import Info, PackageSource, read_info
from runner.recipe.yaml_text import with_member_before, with_value, without
from runner.templating.clone import clone_of
from runner.templating.recipe import render_recipe

_LEFT_BEHIND = {"results", "models", "__pycache__", LOCK}
_TELLS_OF_OTHERS = re.compile(r"README\.md|requirements[\w.-]*\.txt")  # rendered: of results, of versions that were tested


@dataclass(frozen=True)
class Copied:
    """What came of a copy.

    Attributes:
        folder: the new recipe.
        notes: what is left to the person.
    """

    folder: Path
    notes: tuple[str, ...]


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (relative path, file) of what makes a recipe: no results, no made models, no lock, nothing hidden; in order."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part in _LEFT_BEHIND or part.startswith(".") for part in parts) and path.suffix != ".pyc":
            yield "/".join(parts), path


def digest_of(folder: Path) -> str:
    """Returns the sha256 of what decides a recipe's models: info.yml, configs, scripts and sample data.

    README.md and requirements do not count: they tell of results and of versions, which change without the recipe.
    """
    whole = hashlib.sha256()
    for name, path in files_of(folder):
        if not _TELLS_OF_OTHERS.fullmatch(name):
            whole.update(f"{name}\0{sha256_of_file(path)}\n".encode())
    return whole.hexdigest()


def copy_recipe(origin: Entry, name: str, root: Path | None, into: Path | None = None, model: str | None = None) -> Copied:
    """Copies a recipe's folder without its results, renames it, records its origin and renders it.

    Args:
        origin: the recipe to copy.
        name: id of the new one.
        root: the catalogue's folder, in which the name must be free; None where there is none.
        into: folder that the new one goes into; beside the origin when None.
        model: id of the model in place of the origin's.

    Raises:
        UsageError: the name or model id is none, the name is taken, or the folder is there already.
        InvalidRecipe: the copy cannot be rendered.
    """
    _check(name, model, root)
    folder = (into or origin.folder.resolve().parent) / name
    if folder.exists():
        raise UsageError("folder-exists", f"{folder} is there already", "choose another name, or delete it")
    text, notes = copied_info(origin, name, model)
    try:
        _write(origin, folder, text, model)
        notes += list(_render(folder, root))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Copied(folder, tuple(notes))


def _check(name: str, model: str | None, root: Path | None) -> None:
    if not is_name(name):
        raise UsageError(
            "bad-name",
            f"'{name}' cannot be a recipe's name",
            NAME_REMEDY,
        )
    if model is not None and not MODEL_ID.fullmatch(model):
        raise UsageError("bad-model-id", f"'{model}' is no Hugging Face id", "write it as Org/Name")
    taken = (
        next((one for one in list_entries(root).entries if name in (one.info.name, *one.info.aliases)), None) if root else None
    )
    if taken is not None:
        raise UsageError("name-taken", f"there is a recipe '{name}' in {taken.folder}", "choose another name")


def copied_info(origin: Entry, name: str, model: str | None) -> tuple[str, list[str]]:
    """Returns the info.yml of a copy, which remembers its origin, and what is left to the person.

    Args:
        origin: the recipe that is copied.
        name: id of the copy.
        model: id of the model in place of the origin's.
    """
    text = origin.file.read_text(encoding="utf-8")
    text = with_value(text, ("name",), name)
    text = without(text, ("aliases",))
    handles = list(maintainer(origin.folder))
    text = with_value(text, ("maintainers",), handles)
    text = with_member_before(text, "lifecycle", "model", {"status": "draft"})
    text = with_member_before(text, "origin", "model", {"recipe": origin.info.name, "digest": digest_of(origin.folder)})
    notes = [] if handles else ["nobody answers for it yet: write your handle under 'maintainers'"]
    if model is None or model == origin.info.model.id:
        return text, notes
    return _with_model(text, origin.info, model, notes)


def _with_model(text: str, info: Info, model: str, notes: list[str]) -> tuple[str, list[str]]:
    text = with_value(text, ("model", "id"), model)
    text = with_value(text, ("title",), title_of(model))
    for number, source in reversed(list(enumerate(info.model.sources))):
        if isinstance(source, PackageSource):
            text = without(text, ("model", "sources", number))
            notes.append(f"the package {source.package} holds the weights of {info.model.id} and is no source any more")
        else:
            text = with_value(text, ("model", "sources", number), {"hub": model})
    try:
        facts = published(model, info.model.task, offline=True, say=lambda _: None).facts
    except InvalidRecipe:
        facts = {}
    kept = []
    for fact, provenance in info.model.provenance:
        if fact in facts and getattr(info.model, fact) is not None:
            text = with_value(text, ("model", fact), facts[fact].value)
            text = with_value(text, ("model", "provenance", fact), {"source": facts[fact].source})
        elif provenance is not None:
            text = with_value(text, ("model", "provenance", fact), {"source": provenance.source})
            kept.append(fact)
    if kept:
        notes.append(f"{', '.join(kept)} are still those of {info.model.id}: compare them with {model}")
    return text, notes


def _write(origin: Entry, folder: Path, info: str, model: str | None) -> None:
    by_hand = {variant.file for variant in origin.info.recipes if not variant.pipeline}
    for name, path in files_of(origin.folder):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in by_hand:
            content = path.read_text(encoding="utf-8").replace(f'"models/{origin.info.name}-', f'"models/{folder.name}-')
            if model is not None:
                content = content.replace(json.dumps(origin.info.model.id), json.dumps(model))
            target.write_text(content, encoding="utf-8", newline="\n")
        elif name == "README.md":
            named = re.sub(
                rf"(?<![\w.-]){re.escape(origin.info.name)}(?![\w.-])", folder.name, path.read_text(encoding="utf-8")
            )
            target.write_text(named, encoding="utf-8", newline="\n")
        elif path.resolve() != origin.file.resolve():
            shutil.copyfile(path, target)
    (folder / origin.file.name).write_text(info, encoding="utf-8", newline="\n")


def _render(folder: Path, root: Path | None) -> Iterator[str]:
    """Renders the copy; yields what that could not do."""
    file = info_file(folder)
    assert file is not None
    read_info(file)
    entry = read_entry(root, file)
    clone = clone_of(folder)
    for rendering in render_recipe(folder, entry.family, entry.info, clone):
        rendering.write()
    if not folder.resolve().is_relative_to(clone.root.resolve()):
        yield "outside of the clone README.md and requirements are the origin's, under the new name: edit what else differs"
