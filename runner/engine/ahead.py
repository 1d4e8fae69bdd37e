"""A worker that imports its libraries while its job is still being planned."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runner.engine.request import Request
from runner.passes import table

_KEY = "prepare"


@dataclass
class Ahead:
    """Starts a run's worker before its job is known. Use `of_request`."""

    passes: tuple[str, ...]
    offline: bool
    _worker: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the worker where a pass says what to import."""
        if self._worker is None and any(table.get(name).imports for name in self.passes):
            from runner.engine import child  # what minds processes is of no use where everything is done
            from runner.evaluation.subject_process import start_python

            self._worker = start_python("runner.engine.worker")
            child.hand(self._worker, json.dumps({_KEY: self.passes, "offline": self.offline}))

    def take(self) -> subprocess.Popen[str] | None:
        """Returns the worker, which is the caller's from now on; None where none was started."""
        worker, self._worker = self._worker, None
        return worker


@contextlib.contextmanager
def of_request(request: Request) -> Iterator[Ahead]:
    """Yields what may start the worker of a request; one that nobody took ends with the block."""
    ahead = Ahead(tuple(step.type for step in request.config.passes.values()), request.offline)
    try:
        yield ahead
    finally:
        worker = ahead.take()
        if worker is not None:
            from runner.engine import child

            child.stop(worker)


def preparation(line: str) -> tuple[Callable[[], None], bool] | None:
    """Returns what a line asks a worker to import and whether that is done offline; None where the line is a job."""
    told = json.loads(line)
    if _KEY not in told:
        return None

    def imports() -> None:
        for name in told[_KEY]:
            wanted = table.get(name).imports
            if wanted is not None:
                with contextlib.suppress(Exception):  # the step itself fails at it, and is told why
                    wanted()

    return imports, bool(told["offline"])
