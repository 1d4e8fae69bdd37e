"""The points of a search as rows of text, for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass

from runner.report.figures import figure, significant
from runner.search.pareto import compared_figures
from runner.search.search import Found, Search
from runner.search.space import told
from runner.search.study import Trial

NOISY = "speeds were measured once a point, on this machine as it was: differences of a few per cent are noise"


@dataclass(frozen=True)
class Row:
    """A point as people see it.

    Attributes:
        number: counted from 1.
        state: ``best``, ``front``, ``misses …``, ``failed`` or nothing.
        figures: text by column.
        point: its values.
        reason: why it failed; empty where it did not.
    """

    number: int
    state: str
    figures: tuple[str, ...]
    point: str
    reason: str = ""


def rows_of(search: Search, found: Found) -> list[Row]:
    """Returns the points: those that were measured, the best first, then those that failed."""
    columns = compared_figures(found.study.trials, search.aims)
    axes = search.request.loaded.axes
    rows = []
    for trial in found.ranked:
        cells = tuple(_cell(trial, name) for name in columns)
        rows.append(Row(trial.number + 1, _state(trial, search, found), cells, told(trial.point, axes)))
    for trial in found.study.trials:
        if not trial.done:
            rows.append(Row(trial.number + 1, "failed", ("",) * len(columns), told(trial.point, axes), trial.reason or ""))
    return rows


def _cell(trial: Trial, name: str) -> str:
    one = trial.figures.get(name)
    if one is None:
        return ""
    ratio = one.ratio if one.ratio is not None else one.value / one.baseline if one.baseline else None
    return figure(one.value, one.unit) + (f" ({significant(ratio)}x)" if ratio is not None else "")


def _state(trial: Trial, search: Search, found: Found) -> str:
    missed = search.aims.missed(trial.figures)
    best = bool(found.ranked) and trial.number == found.ranked[0].number
    front = "front" if trial.number in found.front else ""
    if missed:
        return f"{'nearest, ' if best else ''}misses {', '.join(missed)}"
    return f"best{', front' if front else ''}" if best else front


def notes_of(search: Search, found: Found) -> list[str]:
    """Returns what people should know of the figures."""
    notes = []
    if search.way.rounds:
        notes.append(NOISY)
    if search.request.smoke:
        notes.append("--smoke: tiny random-weight twins; goals are not judged, and figures say nothing about the real model")
    size = search.space.size()
    tried = len(found.study.trials)
    if size is not None and found.further:
        notes.append(f"{tried} of {size} points were tried: {found.further}")
    return notes
