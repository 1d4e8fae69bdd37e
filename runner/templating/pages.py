"""The rendered pages that are about the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.templating.clone import Clone
from runner.templating.codeowners import render_codeowners
from runner.templating.index import Listed, render_index
from runner.templating.recipe import Rendering


def render_pages(root: Path, entries: Sequence[Listed], clone: Clone) -> list[Rendering]:
    """Returns recipes/README.md and .github/CODEOWNERS; nothing for a catalogue that is not the clone's own.

    Args:
        root: the catalogue's folder.
        entries: every recipe in it.
        clone: the clone that it lies in.

    Raises:
        InvalidRecipe: a template or families.yml has an error, or a results file cannot be read.
    """
    if root.resolve() != clone.root.resolve() / "recipes":
        return []
    return [render_index(entries, clone), render_codeowners(entries, clone)]
