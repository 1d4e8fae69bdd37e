"""What the loader needs to know of a pass: the typed options that it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from runner.recipe.config import Model


class PassOptions(Model):
    """Base of the options of a pass. One declaration: validation, JSON Schema, help and docs derive from it.

    Attributes:
        retired: options of older configs that no longer act, each with the reason; accepted with a note.
        renamed: older names of options that still act.
    """

    retired: ClassVar[Mapping[str, str]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}


# Looks a pass up by its name, in any case. Returns (its right name, its option model), or None, and all names.
OptionsOf = Callable[[str], tuple[tuple[str, type[PassOptions]] | None, Sequence[str]]]
