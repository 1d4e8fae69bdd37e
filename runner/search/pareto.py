"""Which points are not beaten, and which is the best."""

from __future__ import annotations

from collections.abc import Sequence

from runner.search.aims import QUALITIES, SPEEDS, Aims, Figures
from runner.search.study import Trial


def compared_figures(trials: Sequence[Trial], aims: Aims) -> tuple[str, ...]:
    """Returns the figures by which points are compared: those of the aims, the size, one speed and one quality."""
    there = {name for trial in trials for name in trial.figures}
    speed = next((name for name in SPEEDS if name in there), None)
    quality = next((name for name in QUALITIES if name in there), None)
    return tuple(name for name in dict.fromkeys((*aims.metrics, "size", speed, quality)) if name and name in there)


def front_of(trials: Sequence[Trial], aims: Aims) -> tuple[int, ...]:
    """Returns the numbers of the points that no other one beats: at least as good by every figure, better by one.

    The figures are those of `compared_figures`, each in its own direction.
    """
    names = compared_figures(trials, aims)
    told = [(trial.number, _costs(trial.figures, names)) for trial in trials if trial.done]
    return tuple(number for number, costs in told if not any(_beats(other, costs) for _, other in told))


def _costs(figures: Figures, names: Sequence[str]) -> tuple[float, ...]:
    there = [figures.get(name) for name in names]
    return tuple(float("inf") if one is None else -one.value if one.higher_is_better else one.value for one in there)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def ranked(trials: Sequence[Trial], aims: Aims) -> list[Trial]:
    """Returns the points that were measured, the best first; those that meet every goal stand before all others."""
    return sorted((trial for trial in trials if trial.done), key=lambda trial: (aims.rank(trial.figures), trial.number))
