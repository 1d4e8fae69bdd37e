""".github/CODEOWNERS: who is asked to review a change of a recipe, from the maintainers that its info.yml names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runner.templating.clone import Clone
from runner.templating.environment import render
from runner.templating.index import Listed
from runner.templating.recipe import Rendering


def render_codeowners(entries: Sequence[Listed], clone: Clone) -> Rendering:
    """Returns .github/CODEOWNERS: a line for each recipe folder that has maintainers, below the owner of the rest.

    Raises:
        InvalidRecipe: the template has an error.
    """
    root = clone.root.resolve()
    owned = [
        (_pattern(entry.folder.resolve().relative_to(root).as_posix()), entry.info.maintainers)
        for entry in entries
        if entry.info.maintainers
    ]
    text = render(clone.templates, "recipe/CODEOWNERS.j2", {"owned": sorted(owned)})
    return Rendering(clone.root / ".github" / "CODEOWNERS", text.encode())


def _pattern(folder: str) -> str:
    """A folder as a pattern of gitignore's syntax: from the root on, with what has a meaning there escaped."""
    return "/" + re.sub(r"([\s#*?\[\]!\\])", r"\\\1", folder) + "/"
