"""How much a run may take of this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        memory: resident bytes, with the processes that it starts; None for no limit.
        seconds: wall time; None for no limit.
    """

    memory: int | None = None
    seconds: float | None = None
