"""Filters over the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runner.catalog.discover import Entry
from runner.recipe.info import Variant
from runner.targets.target import TARGETS, Target


@dataclass(frozen=True)
class Query:
    """What to list; every condition must hold, and None or nothing holds always.

    Attributes:
        words: each must stand in the id, family, title, summary, keywords, architecture or model id.
        task: Hugging Face task.
        target: a variant runs on it.
        precision: a variant has it.
        licence: the model's licence; a part of its name is enough.
        family: folder that holds the recipe.
    """

    words: Sequence[str] = ()
    task: str | None = None
    target: Target | None = None
    precision: str | None = None
    licence: str | None = None
    family: str | None = None

    def select(self, entries: Sequence[Entry]) -> list[Entry]:
        """Returns the entries that match, each with only its matching variants."""
        matching = []
        for entry in entries:
            variants = [variant for variant in entry.info.recipes if self._wants_variant(variant)]
            if variants and self._wants(entry):
                matching.append(replace(entry, info=entry.info.model_copy(update={"recipes": variants})))
        return matching

    def _wants(self, entry: Entry) -> bool:
        info = entry.info
        text = " ".join(
            (info.name, entry.family, info.title or "", info.summary or "", *info.keywords, info.arch, info.model.id)
        )
        return (
            all(word.lower() in text.lower() for word in self.words)
            and (self.task is None or info.model.task == self.task)
            and (self.licence is None or self.licence.lower() in info.model.licence.lower())
            and (self.family is None or self.family.lower() == entry.family.lower())
        )

    def _wants_variant(self, variant: Variant) -> bool:
        return (self.target is None or variant.ep == self.target.provider) and (
            self.precision is None or variant.precision == self.precision
        )


def target_name(variant: Variant) -> str:
    """Returns the short name of the variant's target, or its execution provider where that is none of ours."""
    return next((target.name for target in TARGETS.values() if target.provider == variant.ep), variant.ep)
