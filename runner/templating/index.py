"""recipes/README.md: every recipe of the catalogue on a page that a person can read, a table a family."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from runner.errors import InvalidRecipe, Place, Problem
from runner.recipe.info import Info
from runner.recipe.quantities import number_order, short_count
from runner.targets.target import TARGETS
from runner.templating.clone import Clone
from runner.templating.environment import render
from runner.templating.recipe import Rendering, targets_of
from runner.templating.results import MARKS, best_figures

# Figures of the last column, the first that a recipe has of each; speed decides which variant is the best.
# Of speed, size and quality: the first that a recipe's task has.
SHOWN_FIGURES = (("decode", "rtf", "step_time", "latency"), ("size",), ("perplexity", "wer", "psnr", "cosine", "agreement"))
_TITLES = {"cpu": "CPU", "cuda": "CUDA", "directml": "DirectML"}


class Listed(Protocol):
    """What the pages about the whole catalogue want to know of a recipe."""

    @property
    def folder(self) -> Path:
        """Returns its folder."""

    @property
    def family(self) -> str:
        """Returns the path of the folder that holds it, below the catalogue's root."""

    @property
    def info(self) -> Info:
        """Returns what info.yml says."""


def render_index(entries: Sequence[Listed], clone: Clone) -> Rendering:
    """Returns recipes/README.md.

    Args:
        entries: every recipe below the clone's recipes/.
        clone: where the template, and the families' titles and lines, are.

    Raises:
        InvalidRecipe: the template or families.yml has an error, or a results file cannot be read.
    """
    told = _told_families(clone.templates / "recipe" / "families.yml")
    in_order = sorted(entries, key=lambda entry: (entry.family, number_order(entry.info.name)))
    groups = [(family, list(group)) for family, group in itertools.groupby(in_order, key=lambda entry: entry.family)]
    context = {
        "families": [_family(family, members, told.get(family, {}), clone) for family, members in groups],
        "variants": sum(len(entry.info.recipes) for entry in entries),
        "marks": MARKS,
    }
    return Rendering(clone.root / "recipes" / "README.md", render(clone.templates, "recipe/index.md.j2", context).encode())


def _told_families(path: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InvalidRecipe(Problem("bad-yaml", error.problem or "not YAML", Place(str(path), line))) from None
    if not isinstance(told, dict) or not all(isinstance(one, dict) and set(one) <= {"title", "line"} for one in told.values()):
        cause = "it maps each family to a 'title' and a 'line'"
        raise InvalidRecipe(Problem("bad-value", cause, Place(str(path))))
    return told


def _family(family: str, members: Sequence[Listed], told: Mapping[str, str], clone: Clone) -> dict[str, Any]:
    title = told.get("title", family)
    there = {target.name for entry in members for target in targets_of(entry.info)}
    return {
        "title": title,
        "anchor": re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"),
        "line": told.get("line"),
        "count": len(members),
        "targets": [_TITLES[name] for name in TARGETS if name in there],
        "rows": [_row(entry, clone) for entry in members],
    }


def _row(entry: Listed, clone: Clone) -> dict[str, Any]:
    info = entry.info
    return {
        "name": info.name,
        "path": entry.folder.resolve().relative_to(clone.root.resolve() / "recipes").as_posix(),
        "deprecated": info.lifecycle.status == "deprecated",
        "parameters": short_count(info.model.parameters) if info.model.parameters else "",
        "licence": info.model.licence,
        "gated": info.model.gated,
        "precisions": {
            _TITLES[target.name]: ", ".join(
                dict.fromkeys(one.precision or one.name for one in info.recipes if one.ep == target.provider)
            )
            for target in targets_of(info)
        },
        "measured": _best(entry),
    }


def _best(entry: Listed) -> str:
    """The figures of the fastest variant that was measured."""
    measured = list(best_figures(entry.folder, entry.info))
    if not measured:
        return "not yet"
    best = max(measured, key=lambda one: _gain(one.ratios))
    shown = [next((f"{name} {best.figures[name]}" for name in names if name in best.figures), "") for names in SHOWN_FIGURES]
    return f"{best.title}: {', '.join(filter(None, shown))}"


def _gain(ratios: Mapping[str, float]) -> float:
    """How many times as fast as the original a variant is; 0 where speed was not measured."""
    if "decode" in ratios:
        return ratios["decode"]
    seconds = next((ratios[name] for name in SHOWN_FIGURES[0] if name in ratios), None)
    return 1 / seconds if seconds else 0.0
