"""How two recipes differ: facts and configs value by value, everything else line by line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.catalog.copies import digest_of, files_of
from runner.catalog.discover import Entry
from runner.recipe.document import read_document
from runner.recipe.folder import INFO_NAMES

_MISSING = object()
_NAMED_BY = ("name", "hub", "package")


@dataclass(frozen=True)
class Difference:
    """What differs in one file.

    Attributes:
        file: its name; `here` and `there` may call it differently where a variant's config was renamed.
        lines: the differences: `path: old -> new` of facts and configs, a unified diff of anything else.
    """

    file: str
    lines: tuple[str, ...]


def origin_changed(entry: Entry, origin: Entry) -> bool:
    """Says whether the origin is another than it was when the recipe was copied from it."""
    return entry.info.origin is not None and digest_of(origin.folder) != entry.info.origin.digest


def differences(old: Entry, new: Entry) -> Iterator[Difference]:
    """Yields every file in which two recipes differ: info.yml, the variants' configs, then the others by name."""
    yield from _of_data("info.yml", yaml.safe_load(_text(old.file)), yaml.safe_load(_text(new.file)))
    theirs = {variant.name: variant.file for variant in old.info.recipes}
    ours = {variant.name: variant.file for variant in new.info.recipes}
    for name in dict.fromkeys((*theirs, *ours)):
        one, other = theirs.get(name), ours.get(name)
        yield from _of_configs(old.folder / one if one else None, new.folder / other if other else None)
    told = {*INFO_NAMES, *theirs.values(), *ours.values()}
    there, here = dict(files_of(old.folder)), dict(files_of(new.folder))
    for name in sorted({*there, *here} - told):
        yield from _of_files(name, there.get(name), here.get(name))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _of_configs(old: Path | None, new: Path | None) -> Iterator[Difference]:
    there, here = old is not None and old.is_file(), new is not None and new.is_file()
    if there and here:
        assert old is not None and new is not None
        name = new.name if new.name == old.name else f"{old.name} -> {new.name}"
        yield from _of_data(name, read_document(old).plain(), read_document(new).plain())
    elif here and new is not None:
        yield Difference(new.name, ("only in the new one",))
    elif there and old is not None:
        yield Difference(old.name, ("only in the old one",))


def _of_data(name: str, old: Any, new: Any) -> Iterator[Difference]:
    lines = tuple(_changes("", old, new))
    if lines:
        yield Difference(name, lines)


def _changes(path: str, old: Any, new: Any) -> Iterator[str]:
    """Yields `path: old -> new` for every value that differs; lists of named things are compared by their names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _changes(f"{path}.{key}" if path else str(key), old.get(key, _MISSING), new.get(key, _MISSING))
        return
    by_name = _named(old), _named(new)
    if by_name[0] is not None and by_name[1] is not None:
        for key in dict.fromkeys((*by_name[0], *by_name[1])):
            yield from _changes(f"{path}[{key}]", by_name[0].get(key, _MISSING), by_name[1].get(key, _MISSING))
        return
    if old is _MISSING:
        yield f"{path}: added {_told(new)}"
    elif new is _MISSING:
        yield f"{path}: removed {_told(old)}"
    elif old != new:
        yield f"{path}: {_told(old)} -> {_told(new)}"


def _named(value: Any) -> dict[str, Any] | None:
    """A list of things by their names; None of anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        return None
    names = [next((str(one[key]) for key in _NAMED_BY if key in one), None) for one in value]
    if None in names or len(set(names)) < len(names):
        return None
    return dict(zip(map(str, names), value, strict=True))


def _told(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _of_files(name: str, old: Path | None, new: Path | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(name, ("only in the new one" if old is None else "only in the old one",))
        return
    theirs, ours = old.read_bytes(), new.read_bytes()
    if theirs == ours:
        return
    try:
        texts = theirs.decode().splitlines(), ours.decode().splitlines()
    except UnicodeDecodeError:
        yield Difference(name, (f"{len(theirs):,} other bytes -> {len(ours):,} bytes",))
        return
    yield Difference(name, tuple(difflib.unified_diff(*texts, "old", "new", n=1, lineterm="")))
