"""A metric: a figure with its unit, its direction and the samples behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One measured figure.

    Attributes:
        name: short stable name, such as ``latency_p50``.
        value: the figure.
        unit: what it counts: ``ms``, ``tokens/s``, ``bytes``; empty for a pure number.
        higher_is_better: direction.
        samples: what the figure was made of, in the same unit; empty where there is nothing behind it.
        note: what a reader must know to read it right.
    """

    name: str
    value: float
    unit: str
    higher_is_better: bool
    samples: tuple[float, ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the metric as plain data."""
        return {**asdict(self), "samples": list(self.samples)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Metric:
        """Returns the metric that `to_json` gave."""
        return cls(**{**data, "samples": tuple(data["samples"])})
