"""What a worker tells its parent: one JSON object a line, on a pipe of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

EventKind = Literal[
    "step-started", "said", "counted", "step-finished", "evaluation-started", "evaluation-finished", "failed", "done"
]


@dataclass(frozen=True)
class Event:
    """Something that happened in the worker.

    Attributes:
        kind: what; `counted` moves a bar and says nothing.
        step: name of the step it belongs to; empty for the run as a whole.
        text: for people.
        data: for the parent: seconds, record, metrics, or the failure's parts; of what was counted `done`, `total` and `news`.
    """

    kind: EventKind
    step: str = ""
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_progress(cls, step: str, done: int, total: int, news: str) -> Event:
        """Returns what tells that so many of a total are done, with what is new, if anything is."""
        data = {"done": done, "total": total, "news": news}
        return cls("said", step, f"{done} of {total}: {news}", data) if news else cls("counted", step, "", data)

    def send(self, pipe: IO[str]) -> None:
        """Writes the event as one line."""
        pipe.write(json.dumps(asdict(self)) + "\n")
        pipe.flush()

    @classmethod
    def parse(cls, line: str) -> Event | None:
        """Returns the event of a line; None for a line that is none (a dying process may leave half of one)."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None
