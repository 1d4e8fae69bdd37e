"""`recipe.lock.json`: exactly which files a recipe's source model consists of, by revision and digest.

A lock is made of what lies on this machine or was just fetched, never of what somebody says; `recipe run --locked` holds the
source model against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from runner.errors import InvalidRecipe, ModelUnavailable, Place, Problem
from runner.models import package_weights
from runner.models.checkpoint import CHECKPOINT_FILES, PICKLED_WEIGHTS
from runner.models.digest import DigestMemo, files_below
from runner.models.hub import cached_snapshot, download
from runner.models.package_weights import Wheel
from runner.models.source import Access
from runner.recipe.config import Model
from runner.recipe.document import read_document
from runner.recipe.info import HubSource, PackageSource
from runner.recipe.validate import check, in_reading_order

NAME = "recipe.lock.json"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_COMMIT = re.compile(r"[0-9a-f]{40}")


class LockedFile(Model):
    """A file of the model."""

    file: str = Field(description="path below the model's folder")
    sha256: Sha256
    bytes: int = Field(ge=0)


class LockedWheel(Model):
    """The wheel that brought the files."""

    file: str
    sha256: Sha256
    bytes: int = Field(ge=0)


class LockedHub(Model):
    """A commit of a repository on the hub."""

    hub: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class LockedPackage(Model):
    """A Python package that carries the weights."""

    package: str
    wheel: LockedWheel


def _kind(value: object) -> str:
    """A source is told by the key that it has."""
    package = isinstance(value, LockedPackage) or (isinstance(value, dict) and "package" in value)
    return "package source" if package else "hub source"


class Lock(Model):
    """What a recipe's source model consisted of on the day that it was resolved."""

    lock: Literal[1] = 1
    recipe: str
    model: str = Field(description="the model's id, as info.yml names it")
    resolved: date
    source: Annotated[
        Annotated[LockedHub, Tag("hub source")] | Annotated[LockedPackage, Tag("package source")], Discriminator(_kind)
    ]
    files: list[LockedFile] = Field(min_length=1)

    def to_json(self) -> str:
        """Returns the text of the lock file."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class _Resolved:
    source: HubSource | PackageSource
    folder: Path


def make_lock(recipe: str, model: str, sources: Sequence[HubSource | PackageSource], access: Access) -> Lock:
    """Returns the lock of the first of the sources that is here already, else of the first that can be fetched.

    Raises:
        ModelUnavailable: none of them can be had, or the commit or wheel behind the files is not known.
    """
    found = _resolve(model, list(sources) or [HubSource(hub=model)], access)
    if isinstance(found.source, PackageSource):
        wheel = package_weights.wheel_of(found.source, access.models, access.offline, access.say)
        source: LockedHub | LockedPackage = LockedPackage(package=found.source.package, wheel=_locked(wheel))
    else:
        source = LockedHub(hub=found.source.hub, revision=_commit(found))
    access.say(f"reading the files of {model}")
    files = [
        LockedFile(file=name, sha256=access.memo.of_file(path), bytes=path.stat().st_size)
        for name, path in _files(found.folder)
    ]
    return Lock(recipe=recipe, model=model, resolved=date.today(), source=source, files=files)


def _locked(wheel: Wheel) -> LockedWheel:
    return LockedWheel(file=wheel.file, sha256=wheel.sha256, bytes=wheel.bytes)


def _resolve(model: str, sources: Sequence[HubSource | PackageSource], access: Access) -> _Resolved:
    for source in sources:
        folder = (
            package_weights.unpacked(source, access.models) if isinstance(source, PackageSource) else cached_snapshot(source)
        )
        if folder is not None:
            return _Resolved(source, folder)
    if access.offline:
        raise ModelUnavailable(
            "not-resolved", f"{model} is not on this machine, and --offline forbids fetching it", "go online"
        )
    failures: list[str] = []
    for source in sources:
        try:
            if isinstance(source, PackageSource):
                return _Resolved(source, package_weights.fetch(source, access.models, access.say))
            return _Resolved(source, download(source, access.say))
        except ModelUnavailable as error:
            failures += [problem.cause for problem in error.problems]
    raise ModelUnavailable("not-resolved", f"{model} cannot be had: {'; '.join(failures)}", "try again where it can be reached")


def _commit(found: _Resolved) -> str:
    if not _COMMIT.fullmatch(found.folder.name):
        raise ModelUnavailable(
            "not-resolved", f"{found.folder} does not tell the commit that it is of", "delete it, and fetch the model again"
        )
    return found.folder.name


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name, path) of what the model is made of: weights, configuration, tokenizer."""
    found = files_below(folder)
    endings: tuple[str, ...] = (*CHECKPOINT_FILES, ".gguf")
    if not any(name.endswith((".safetensors", ".gguf")) for name, _ in found):
        endings += PICKLED_WEIGHTS
    return ((name, path) for name, path in found if name.endswith(endings))


def read_lock(folder: Path, recipe: str) -> Lock:
    """Returns the lock that lies in a recipe's folder.

    Raises:
        InvalidRecipe: there is none, it cannot be read, or it is another recipe's.
    """
    path = folder / NAME
    if not path.is_file():
        cause = f"{recipe} has no lock, so there is nothing to hold the model against"
        raise InvalidRecipe(Problem("no-lock", cause, Place(str(path)), f"make one: recipe lock {recipe}"))
    problems: list[Problem] = []
    node = read_document(path)
    lock = check(Lock, node, problems, Place(str(path)))
    if problems or lock is None:
        raise InvalidRecipe(*in_reading_order(problems, [path]))
    return lock


def pinned(lock: Lock, sources: Sequence[HubSource | PackageSource], place: Path) -> list[HubSource | PackageSource]:
    """Returns the one source that the lock is of, at the revision that it names.

    Raises:
        InvalidRecipe: the recipe does not name that source any more.
    """
    for source in sources:
        if isinstance(source, HubSource) and isinstance(lock.source, LockedHub) and source.hub == lock.source.hub:
            return [source.model_copy(update={"revision": lock.source.revision})]
        if (
            isinstance(source, PackageSource)
            and isinstance(lock.source, LockedPackage)
            and source.package == lock.source.package
        ):
            return [source]
    named = lock.source.hub if isinstance(lock.source, LockedHub) else lock.source.package
    cause = f"the lock is of {named}, which is none of the recipe's sources"
    raise InvalidRecipe(Problem("lock-outdated", cause, Place(str(place / NAME)), f"make it again: recipe lock {lock.recipe}"))


def hold_against(lock: Lock, folder: Path, memo: DigestMemo, place: Path) -> None:
    """Makes sure that a model's folder holds exactly the files of a lock.

    Args:
        lock: the lock.
        folder: the model.
        memo: remembers digests.
        place: the recipe's folder, where the lock lies.

    Raises:
        InvalidRecipe: names every file that is missing, other, or not in the lock.
    """
    at = Place(str(place / NAME))
    remedy = f"fetch the locked model, or accept this one: recipe lock {lock.recipe}"
    problems = []
    if isinstance(lock.source, LockedHub) and _COMMIT.fullmatch(folder.name) and folder.name != lock.source.revision:
        cause = f"{lock.source.hub}: the lock says revision {lock.source.revision}, found {folder.name}"
        problems.append(Problem("lock-mismatch", cause, at, remedy))
    there = dict(_files(folder))
    for locked in lock.files:
        path = there.pop(locked.file, None)
        if path is None:
            problems.append(Problem("lock-mismatch", f"{locked.file}: expected by the lock, not found in {folder}", at, remedy))
        elif (digest := memo.of_file(path)) != locked.sha256:
            cause = f"{locked.file}: expected sha256 {locked.sha256}, found {digest} in {folder}"
            problems.append(Problem("lock-mismatch", cause, at, remedy))
    problems += [Problem("lock-mismatch", f"{name}: found in {folder}, not in the lock", at, remedy) for name in sorted(there)]
    if problems:
        raise InvalidRecipe(*problems)
