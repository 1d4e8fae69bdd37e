"""Which variants a check runs: what a change can have broken, a spread over the catalogue, a shard of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.catalog.discover import Entry
from runner.errors import UsageError
from runner.recipe.folder import INFO_NAMES
from runner.recipe.info import Variant
from runner.targets.target import TARGETS
from runner.templating.clone import PIPELINE_SUFFIX, Clone

MOST_OF_A_TEMPLATE = 20
_ONLY_READ = ("README.md", "recipe.lock.json")  # by people and by --locked: what a run makes does not depend on them
_PROVIDERS = [target.provider for target in TARGETS.values()]


@dataclass(frozen=True)
class Candidate:
    """A variant that can be run."""

    entry: Entry
    variant: Variant

    @property
    def id(self) -> str:
        """Returns `recipe/variant`, as the command line takes it."""
        return f"{self.entry.info.name}/{self.variant.name}"

    @property
    def config(self) -> Path:
        """Returns its config file."""
        return self.entry.folder / self.variant.file

    @property
    def features(self) -> frozenset[str]:
        """Returns what a spread must cover: the architecture and the pipeline; a config kept by hand is one of its own."""
        pipeline = f"pipeline {self.variant.pipeline}" if self.variant.pipeline else f"config {self.id}"
        return frozenset((f"architecture {self.entry.info.arch}", pipeline))


@dataclass(frozen=True)
class Selection:
    """What a check looks at.

    Attributes:
        folders: recipe folders to lint.
        candidates: variants to run, in the order of their ids.
        why: how that came about, a line each.
        documents: whether the pages around the recipes are linted as well.
    """

    folders: tuple[Path, ...]
    candidates: tuple[Candidate, ...]
    why: tuple[str, ...]
    documents: bool = False


def candidates_of(entries: Iterable[Entry]) -> list[Candidate]:
    """Returns every variant of the entries, in the order of their ids."""
    return sorted((Candidate(entry, variant) for entry in entries for variant in entry.info.recipes), key=lambda one: one.id)


def spread(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns few variants that cover every architecture and every pipeline of the candidates.

    Greedy set cover: the variant that adds most comes next, of equal ones that of the smallest model, on CPU first, then by
    id. The same candidates always give the same spread.
    """
    left = sorted(candidates, key=_cheapest_first)
    uncovered = {feature for one in left for feature in one.features}
    chosen = []
    while uncovered:
        best = max(left, key=lambda one: len(one.features & uncovered))  # the first of equal ones
        chosen.append(best)
        uncovered -= best.features
    return sorted(chosen, key=lambda one: one.id)


def _cheapest_first(one: Candidate) -> tuple[int, int, str]:
    provider = _PROVIDERS.index(one.variant.ep) if one.variant.ep in _PROVIDERS else len(_PROVIDERS)
    return provider, one.entry.info.model.parameters or 0, one.id


def shard(candidates: Sequence[Candidate], text: str) -> list[Candidate]:
    """Returns the part of the candidates that `i/n` names, i from 1: every n-th, so that neighbours go to different parts.

    Raises:
        UsageError: the text is not of that form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError("bad-shard", f"'{text}' is no shard", "write it as 3/8: the third of eight, counted from 1")
    return list(candidates[part - 1 :: parts])


def affected(files: Sequence[Path], entries: Sequence[Entry], clone: Clone) -> Selection:
    """Returns what changed files can have broken.

    A recipe's own files: its variants; a config or results file alone: that variant, or none. A pipeline's template: its
    variants, or a spread over them where they are many, since rendering changes all their configs alike. The runner, the
    locks of tested versions and what pipelines share: a spread over the catalogue.

    Args:
        files: absolute paths.
        entries: the catalogue's recipes.
        clone: where the templates are.
    """
    look = _Look(files, entries, clone)
    own, alike, everywhere = look.own(), look.alike(), look.everywhere()
    chosen = {one.id: one for one in own}
    why = [f"{_count(own)} whose recipe changed"] if own else []
    alike = [one for one in alike if one.id not in chosen]
    if alike:
        picked = alike if len(alike) <= MOST_OF_A_TEMPLATE else spread(alike)
        chosen |= {one.id: one for one in picked}
        why.append(f"{len(picked)} of {_count(alike)} whose template changed")
    if everywhere:
        picked = spread(candidates_of(entries))
        chosen |= {one.id: one for one in picked}
        why.append(f"the spread over the catalogue, {_count(picked)}, since {everywhere} changed")
    folders = [entry.folder for entry in entries] if look.all_folders() else look.folders()
    return Selection(tuple(folders), tuple(chosen[id_] for id_ in sorted(chosen)), tuple(why), look.documents())


def _count(candidates: Sequence[Candidate]) -> str:
    return "1 variant" if len(candidates) == 1 else f"{len(candidates)} variants"


class _Look:
    """Changed files, looked at from the recipes."""

    def __init__(self, files: Sequence[Path], entries: Sequence[Entry], clone: Clone) -> None:
        self._entries = entries
        self._root = clone.root.resolve()
        self._files = [file.resolve() for file in files]
        self._changed = {entry.folder: list(self._below(entry.folder)) for entry in entries}
        self._shared = [file.relative_to(self._root).as_posix() for file in self._files if file.is_relative_to(self._root)]

    def _below(self, folder: Path) -> Iterator[str]:
        home = folder.resolve()
        for file in self._files:
            if file.is_relative_to(home):
                yield file.relative_to(home).as_posix()

    def folders(self) -> list[Path]:
        """Returns the folders in which anything changed."""
        return [folder for folder, names in self._changed.items() if names]

    def all_folders(self) -> bool:
        """Says whether something changed that every folder is linted against."""
        return any(name.startswith(("templates/", "constraints/", "runner/")) for name in self._shared)

    def documents(self) -> bool:
        """Says whether a page of no recipe changed, or something that pages tell of: recipes that came or went, too."""
        of_pages = any(name.endswith(".md") or name.startswith("recipes/") for name in self._shared)
        return of_pages or self.all_folders() or bool(self.folders())

    def own(self) -> list[Candidate]:
        """Returns the variants of recipes whose facts, scripts or data changed."""
        return candidates_of(
            entry for entry in self._entries if any(_decides(name, entry) for name in self._changed[entry.folder])
        )

    def alike(self) -> list[Candidate]:
        """Returns the variants whose config, pipeline or set of sample data changed."""
        names = [
            name.removesuffix(PIPELINE_SUFFIX) for name in self._in("templates/pipelines/") if name.endswith(PIPELINE_SUFFIX)
        ]
        sets = {name.partition("/")[0] for name in self._in("templates/samples/")}
        return [
            one
            for one in candidates_of(self._entries)
            if one.variant.pipeline in names
            or one.variant.file in self._changed[one.entry.folder]
            or sets & set(one.entry.info.samples)
        ]

    def everywhere(self) -> str | None:
        """Returns the first changed file that every run depends on, or None."""
        parts = [name for name in self._in("templates/pipelines/") if not name.endswith(PIPELINE_SUFFIX)]
        if parts:
            return f"templates/pipelines/{parts[0]}"
        return next(
            (name for name in self._shared if name.startswith(("runner/", "constraints/")) or name == "pyproject.toml"), None
        )

    def _in(self, folder: str) -> list[str]:
        return [name.removeprefix(folder) for name in self._shared if name.startswith(folder)]


def _decides(name: str, entry: Entry) -> bool:
    """Says whether a file below a recipe's folder bears on all its variants."""
    rendered = {variant.file for variant in entry.info.recipes if variant.pipeline}
    if name in INFO_NAMES:
        return True
    if name in rendered or name in _ONLY_READ or re.fullmatch(r"requirements[\w.-]*\.txt", name):
        return False
    shared = bool(entry.info.samples) and name.startswith("sample_data/")
    return not shared and not name.startswith(("results/", "models/"))
