"""What the variants of a recipe need on this machine, and whether they can be run here."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.catalog.find import Found, find, named_variant
from runner.cli.estimates import needs_facts
from runner.compose.request import make_request
from runner.engine.estimate import Needs, estimate
from runner.engine.fit import check_fit
from runner.engine.plan import Plan
from runner.engine.request import makes_genai
from runner.engine.run import plan_run
from runner.errors import DoesNotFit, Problem, RecipeError
from runner.passes import table
from runner.targets.target import TARGETS, what_is_missing


@dataclass(frozen=True)
class Readiness:
    """What one variant needs here.

    Attributes:
        name: id/variant, or the configuration's name.
        target: name of its target; the execution provider that info.yml names where that is none of ours.
        needs: download, memory and disk; None where they cannot be told.
        problems: what a run would stop at.
        notes: what people should know besides.
    """

    name: str
    target: str
    needs: Needs | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the same as plain data, sizes in bytes."""
        return {
            "name": self.name,
            "target": self.target,
            "can_run": not self.problems,
            "needs": needs_facts(self.needs),
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
        }


def readiness_of(word: str, catalog: Path | None) -> list[Readiness]:
    """Returns the variant that a word names, else all of the recipe that it names: first the one that `recipe run` would take.

    Nothing is fetched and nothing is made.

    Args:
        word: see `runner.catalog.find.find`.
        catalog: folder of recipes; $RECIPE_CATALOG or the nearest recipes/ when None.

    Raises:
        UsageError: nothing has that name.
        InvalidRecipe: the recipe's info.yml is not valid.
    """
    found = find(word, catalog)
    others: Sequence[str] = ()
    if found.info is not None and found.variant is not None and named_variant(word, catalog) is None:
        others = [variant.name for variant in found.info.recipes if variant.name != found.variant.name]
    return [_of(found, catalog), *(_of(find(str(found.folder), catalog, name), catalog) for name in others)]


def _of(found: Found, catalog: Path | None) -> Readiness:
    name = f"{found.id}/{found.variant.name}" if found.variant else found.id
    try:
        plan = plan_run(make_request(str(found.config), catalog=catalog, only_plan=True), lambda _: None, fetch=False)
    except RecipeError as error:
        return Readiness(name, found.variant.ep if found.variant else "", None, error.problems, ())
    needs = estimate(plan)
    problems, notes = [*_of_target(plan), *_of_packages(plan), *plan.lacks], list(plan.request.loaded.notes)
    try:
        notes += check_fit(plan, needs) if needs else ["what it needs cannot be told: nothing is known of the model's weights"]
    except DoesNotFit as error:
        problems += error.problems
    return Readiness(name, plan.target.name, needs, tuple(problems), tuple(notes))


def _of_target(plan: Plan) -> Iterator[Problem]:
    if missing := what_is_missing(plan.target, genai=makes_genai(plan.request.config)):
        cause, remedy = missing
        yield Problem("target-unavailable", f"{plan.target.provider}: {cause}", remedy=remedy)


def _of_packages(plan: Plan) -> Iterator[Problem]:
    """The packages that passes compute with; the runtime's wheels belong to the target."""
    wheels = {wheel for target in TARGETS.values() for wheel in target.wheels}
    asked = {name: step.pass_name for step in plan.steps for name in table.get(step.pass_name).packages if name not in wheels}
    for name, pass_name in asked.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            cause = f"{pass_name} needs the package {name}, which is not installed"
            yield Problem("package-missing", cause, remedy=f"pip install {name}")
