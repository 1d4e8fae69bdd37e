"""The points of a search: which there are, in which order, and which of their values act."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.recipe.choices import Axis, Point

_COUNTED = 100_000


@dataclass(frozen=True)
class Space:
    """What is varied.

    Attributes:
        axes: all that the configuration varies.
        varied: names of those that vary here; the others stay.
        fixed: value by name of what stays; its first value where it is not named.
    """

    axes: tuple[Axis, ...]
    varied: frozenset[str]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def whole(cls, axes: Sequence[Axis], options: bool = True) -> Space:
        """Returns the space of all axes; without `options`, only the choices of passes vary."""
        return cls(tuple(axes), frozenset(axis.name for axis in axes if options or not axis.option))

    @property
    def steps(self) -> tuple[str, ...]:
        """Returns the steps at which more than one value can be taken, in their order."""
        several = (
            axis.step for axis in self.axes if axis.name in self.varied and (axis.values is None or len(axis.values) > 1)
        )
        return tuple(dict.fromkeys(several))

    def of_step(self, step: str, best: Point) -> Space:
        """Returns the space in which only one step varies, the others as in `best`."""
        return Space(self.axes, frozenset(axis.name for axis in self.axes if axis.step == step) & self.varied, best)

    def complete(self, point: Point) -> dict[str, Any]:
        """Returns the point with a value for every axis that acts in it, and for no other."""
        told: dict[str, Any] = {}
        for axis in self.axes:
            if axis.alternative is None or told.get(axis.step) == axis.alternative:
                told[axis.name] = point.get(axis.name, self.fixed.get(axis.name, axis.first))
        return told

    def acting(self, point: Point) -> Iterator[Axis]:
        """Yields the axes that vary and act in a point."""
        for axis in self.axes:
            if axis.name in self.varied and (axis.alternative is None or point.get(axis.step) == axis.alternative):
                yield axis

    def holds(self, point: Point) -> bool:
        """Returns whether a complete point is one of this space."""
        kept = self.complete({name: value for name, value in point.items() if name in self.varied})
        return key_of(kept) == key_of(point)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yields all complete points, each once, the last axis changing fastest.

        Raises:
            ValueError: an axis is a range whose numbers cannot be counted; its text is the axis's name.
        """
        for choice in self._choices():
            axes = [axis for axis in self.acting(choice) if axis.option]
            for axis in axes:
                if axis.values is None:
                    raise ValueError(axis.name)
            for values in itertools.product(*(axis.values or () for axis in axes)):
                yield self.complete({**choice, **{axis.name: value for axis, value in zip(axes, values, strict=True)}})

    def _choices(self) -> Iterator[dict[str, Any]]:
        """Yields what the steps take that choose among passes."""
        choosing = [axis for axis in self.axes if not axis.option]
        values = [
            (axis.values or ()) if axis.name in self.varied else (self.fixed.get(axis.name, axis.first),) for axis in choosing
        ]
        for taken in itertools.product(*values):
            yield {axis.name: value for axis, value in zip(choosing, taken, strict=True)}

    def size(self) -> int | None:
        """Returns the number of points; None where they cannot be counted."""
        total = 0
        for choice in self._choices():
            count = 1
            for axis in self.acting(choice):
                if axis.option:
                    if axis.values is None:
                        return None
                    count *= len(axis.values)
            total += count
        return total

    def listed(self) -> list[dict[str, Any]] | None:
        """Returns all points; None where there are too many."""
        size = self.size()
        return list(self.points()) if size is not None and size <= _COUNTED else None


def key_of(point: Point) -> str:
    """Returns the point as a text that equals another's only where the points are the same."""
    return json.dumps(point, sort_keys=True)


def told(point: Point, axes: Sequence[Axis]) -> str:
    """Returns what tells a point from others, for people: its values on the axes that have several; all where none has."""
    several = {axis.name for axis in axes if axis.values is None or len(axis.values) > 1} or set(point)
    return ", ".join(f"{name}={text_of(value)}" for name, value in point.items() if name in several)


def text_of(value: Any) -> str:
    """Returns a value for people: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
