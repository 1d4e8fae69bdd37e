"""What a rule of the catalogue is, and what breaking it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from runner.catalog.lint.subject import Catalogue, Subject
from runner.errors import Place, Problem, RecipeError

Severity = Literal["must", "should"]


@dataclass(frozen=True)
class Fault:
    """Where a rule is broken.

    Attributes:
        cause: what is wrong, in a sentence without a final stop.
        place: file, and line of the very value where it has one.
        fix: what mends it; None where the rule's own fix says it.
    """

    cause: str
    place: Place
    fix: str | None = None


Faults = Iterator[Fault]


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue.

    Attributes:
        id: short stable name.
        severity: ``must`` fails the check, ``should`` is a hint; None where the rule is for other catalogues alone.
        what: what holds in a good recipe.
        why: what goes wrong otherwise.
        fix: what to do.
        of_recipe: yields the faults of a recipe folder.
        of_clone: yields the faults of what lies around the recipes: documentation, overviews.
        elsewhere: its severity in a catalogue laid out as olive-recipes is; None where it does not apply there.
    """

    id: str
    severity: Severity | None
    what: str
    why: str
    fix: str
    of_recipe: Callable[[Subject], Faults] | None = None
    of_clone: Callable[[Catalogue], Faults] | None = None
    elsewhere: Severity | None = None


@dataclass(frozen=True)
class Finding:
    """A rule that is broken, and where."""

    severity: Severity
    problem: Problem

    @classmethod
    def of(cls, rule: Rule, severity: Severity, fault: Fault) -> Finding:
        """Returns the finding of a rule's fault."""
        return cls(severity, Problem(rule.id, fault.cause, fault.place, fault.fix or rule.fix))


def faults_of(error: RecipeError, place: Place) -> Faults:
    """Yields the problems of an error as faults, at `place` where they have none of their own."""
    for problem in error.problems:
        yield Fault(problem.cause, problem.place or place, problem.remedy)
