"""The error tree: what went wrong, where, and what mends it.

Every error that a person can cause carries one or more `Problem`s. The class of the error decides the exit code:

    0 ok · 1 the run failed · 2 usage or invalid recipe · 3 a bug of ours · 4 a quality gate missed · 130 interrupted
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Place:
    """Where a problem is: a file and, when it is known, the line in it (counted from 1)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that somebody must mend.

    Attributes:
        rule: short stable id, such as ``unknown-option``.
        cause: what is wrong, in a sentence without a final stop.
        place: file and line, or None where the problem has none (a flag, the machine).
        remedy: what to do about it.
    """

    rule: str
    cause: str
    place: Place | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        head = f"{self.place}: " if self.place else ""
        tail = f"\n    {self.remedy}" if self.remedy else ""
        return f"{head}{self.rule}: {self.cause}{tail}"

    def to_json(self) -> dict[str, str | int | None]:
        """Returns the problem as plain data: ``rule``, ``cause``, ``remedy``, ``file`` and ``line``, None for what it lacks."""
        return {
            "rule": self.rule,
            "cause": self.cause,
            "remedy": self.remedy,
            "file": self.place.file if self.place else None,
            "line": self.place.line if self.place else None,
        }


class RecipeError(Exception):
    """Root of all errors that are not bugs. Holds the problems; its text is their list."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def at(self, place: Place | None) -> Self:
        """Places the problems that have no place of their own, and returns the error."""
        self.problems = tuple(replace(problem, place=problem.place or place) for problem in self.problems)
        self.args = ("\n".join(str(problem) for problem in self.problems),)
        return self


class InvalidRecipe(RecipeError):
    """A config, an info.yml or an override does not say anything that can be run."""

    exit_code = 2


class UsageError(RecipeError):
    """The command was called with something that does not exist or does not go together."""

    exit_code = 2

    def __init__(self, rule: str, cause: str, remedy: str | None = None) -> None:
        super().__init__(Problem(rule, cause, remedy=remedy))


class NotTrusted(RecipeError):
    """The run would execute code that comes with the model or with a foreign folder."""

    exit_code = 2

    def __init__(self, what: Iterable[str], place: Place | None = None) -> None:
        listed = ", ".join(what)
        super().__init__(
            Problem(
                "not-trusted",
                f"this run would execute code from outside the catalogue: {listed}",
                place,
                "read that code; if you trust it, run again with --trust",
            )
        )


class ModelUnavailable(RecipeError):
    """The source model cannot be had: not on disk, not in a cache, not reachable, or damaged."""

    def __init__(self, rule: str, cause: str, remedy: str | None = None, place: Place | None = None) -> None:
        super().__init__(Problem(rule, cause, place, remedy))


class TargetUnavailable(RecipeError):
    """The execution provider that was asked for is not on this machine."""

    def __init__(self, target: str, cause: str, remedy: str) -> None:
        super().__init__(Problem("target-unavailable", f"{target}: {cause}", remedy=remedy))


class DoesNotFit(RecipeError):
    """The run needs more memory or disk than this machine has."""


class PackageMissing(RecipeError):
    """A package that the run needs is not installed in this environment."""


class DataUnavailable(RecipeError):
    """Calibration or evaluation data cannot be had or does not fit the model."""

    def __init__(self, cause: str, remedy: str | None = None, place: Place | None = None) -> None:
        super().__init__(Problem("data-unavailable", cause, place, remedy))


class RunFailed(RecipeError):
    """A step or a metric raised, or the worker died. Names the log."""

    def __init__(self, rule: str, cause: str, remedy: str | None = None, log: str | None = None) -> None:
        self.log = log
        told = "\n    ".join(part for part in (remedy, f"log: {log}" if log else None) if part)
        super().__init__(Problem(rule, cause, remedy=told or None))


class NotForTarget(RecipeError):
    """The model was made, but the provider that it was made for cannot run all of it."""


class StoreError(RecipeError):
    """The store or the output folder cannot be written or read."""

    def __init__(self, rule: str, cause: str, remedy: str | None = None) -> None:
        super().__init__(Problem(rule, cause, remedy=remedy))


class GateMissed(RecipeError):
    """The model was made, but a quality gate of its recipe is not met."""

    exit_code = 4


class Interrupted(RecipeError):
    """Somebody pressed Ctrl-C or sent a termination signal."""

    exit_code = 130

    def __init__(self, cause: str = "finished steps are kept and the next run goes on behind them") -> None:
        super().__init__(Problem("interrupted", cause))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known name closest to `word` regardless of case, or None when nothing is near.

    A word that is close to the beginning of a longer name is near it too.
    """
    word = word.lower()
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word, by_lower, n=1, cutoff=0.6)
    if not found:
        by_beginning = {name[: len(word) + 1]: name for name in reversed(by_lower)}
        found = [by_beginning[close] for close in difflib.get_close_matches(word, by_beginning, n=1, cutoff=0.75)]
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a remedy: the nearest known name, or the list of what there is (first twenty)."""
    names = sorted(known)
    found = nearest(word, names)
    if found:
        return f"did you mean '{found}'?"
    if not names:
        return "there are none"
    return f"known: {', '.join(names[:20])}" + (" …" if len(names) > 20 else "")
