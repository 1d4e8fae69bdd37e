"""With which passes the recipes of a case were made: what the results file keeps, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import runner
from runner.errors import RecipeError
from runner.passes import table
from runner.passes.record import changes_since, settings_digest


def passes_of(recipes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns, by recipe (ID or ID/VARIANT), the versions of its passes and the digest of their options, as of today.

    Raises:
        RecipeError: there is no such recipe.
    """
    told = {}
    for name in recipes:
        recipe = runner.load_recipe(name)
        versions = {step.type: table.get(step.type).version for step in recipe.config.passes.values()}
        told[name] = {"passes": versions, "settings": settings_digest(_written(recipe))}
    return told


def changed_since(known: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    """Returns how recipes differ today from what `passes_of` told of them; None where nothing does.

    Args:
        known: what it told; None where nobody asked.
    """
    if known is None:
        return "nobody wrote down with which passes"
    changes = []
    for name, one in known.items():
        try:
            now = _written(runner.load_recipe(name))
        except RecipeError:
            changes.append(f"{name} is gone")
            continue
        if found := changes_since(one["passes"], one["settings"], now):
            changes.append(f"{name}: {', '.join(found)}")
    return "; ".join(changes) or None


def _written(recipe: runner.Recipe) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(recipe.request.loaded.files[0].read_text(encoding="utf-8"))
    return told
