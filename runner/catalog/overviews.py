"""The pages about the whole catalogue, kept up with the recipes that lie on disk."""

from __future__ import annotations

from pathlib import Path

from runner.catalog.discover import list_entries
from runner.templating.clone import clone_of
from runner.templating.pages import render_pages


def write_overviews(root: Path) -> None:
    """Writes recipes/README.md and .github/CODEOWNERS where a recipe that came, went or changed makes them differ.

    Raises:
        InvalidRecipe: a template has an error, or a results file cannot be read.
    """
    for rendering in render_pages(root, list_entries(root).entries, clone_of(root)):
        if rendering.difference() is not None:
            rendering.write()
