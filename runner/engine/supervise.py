"""Runs one worker, passes on what it tells, enforces limits, and turns its death into a plain error."""

from __future__ import annotations

import contextlib
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import psutil

from runner.engine import child
from runner.engine.events import Event
from runner.engine.job import Job
from runner.engine.limits import Limits
from runner.errors import (
    GateMissed,
    Interrupted,
    InvalidRecipe,
    Place,
    Problem,
    RecipeError,
    RunFailed,
)
from runner.evaluation.subject_process import start_python

_POLL_SECONDS = 0.25
_GIVEN_UP = "what steps have left until now and --no-artifacts has given up is made again by the next run"


def supervise(job: Job, limits: Limits, listen: Callable[[Event], None], worker: subprocess.Popen[str] | None = None) -> None:
    """Runs the job in a worker process and returns when it is done.

    Args:
        job: what is to do.
        limits: what the worker may use.
        listen: told what happens.
        worker: one that was started ahead and has no job yet; a new one when None.

    Raises:
        RunFailed: the worker failed, died or went over a limit; names the log.
        Interrupted: Ctrl-C reached this process (the command line takes a termination signal for one). The worker is gone
            and its scratch removed.
        RecipeError: what the worker reported as a person's problem, with the exit code it had there.
    """
    worker = worker or start_python("runner.engine.worker")
    watch = _Watch(worker.pid, limits)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
    try:
        child.hand(worker, job.to_line())
        failure = _follow(worker, lines, job, watch, listen)
    except KeyboardInterrupt:
        raise (Interrupted(_GIVEN_UP) if job.no_artifacts else Interrupted()) from None
    finally:
        child.stop(worker)
        child.end_all(watch.below)
        for path in job.places.scratch.glob(f"{worker.pid}-*"):
            shutil.rmtree(path, ignore_errors=True)
    if failure is not None:
        raise failure


def _read(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    for line in stream or ():
        lines.put(line)
    lines.put(None)


def _follow(
    worker: subprocess.Popen[str],
    lines: queue.Queue[str | None],
    job: Job,
    watch: _Watch,
    listen: Callable[[Event], None],
) -> RecipeError | None:
    """Listens until the worker is done. Returns what went wrong, or None."""
    step = ""
    while True:
        over = watch.over()
        if over:
            return RunFailed(over[0], f"{_where(step, job)}{over[1]}", over[2], str(job.log))
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            rule, cause, remedy = child.death(worker.wait(), "the worker", watch.peak)
            return RunFailed(rule, f"{_where(step, job)}{cause}", remedy, str(job.log))
        event = Event.parse(line)
        if event is None:
            continue
        step = event.step or step
        if event.kind == "failed":
            return _failure(event, job)
        if event.kind == "done":
            return None
        listen(event)


def _where(step: str, job: Job, component: str | None = None) -> str:
    found = next((one for one in job.steps if one.name == step), None)
    of_it = f", component '{component}'" if component else ""
    return f"step '{found.name}' ({found.pass_name}){of_it}: " if found else ""


def _failure(event: Event, job: Job) -> RecipeError:
    where = _where(event.step, job, event.data.get("component"))
    problems = event.data.get("problems")
    if problems is not None:
        told = [_problem(one, where, job) for one in problems]
        if event.data.get("kind") == RunFailed.__name__:
            return RunFailed(told[0].rule, told[0].cause, told[0].remedy)
        kind = {2: InvalidRecipe, 4: GateMissed}.get(event.data["exit_code"], RecipeError)
        return kind(*told)
    if event.data.get("memory"):
        return RunFailed("out-of-memory", f"{where}out of memory", "use a smaller model or a bigger machine", str(job.log))
    return RunFailed(
        "step-failed",
        f"{where}{event.text}",
        "the log holds the traceback; the step is not cached, and a rerun tries it again",
        str(job.log),
    )


def _problem(data: dict[str, Any], where: str, job: Job) -> Problem:
    place = Place(data["place"]) if data["place"] else None
    remedy = "\n    ".join(part for part in (data["remedy"], f"log: {job.log}") if part)
    return Problem(data["rule"], f"{where}{data['cause']}", place, remedy)


class _Watch:
    """Samples the memory of a process and of those that it started, and its age.

    Attributes:
        peak: the most bytes that they held together.
        below: the processes that it had started when it was last looked at.
    """

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid = pid
        self._limits = limits
        self._started = time.monotonic()
        self.peak = 0
        self.below: list[psutil.Process] = []

    def over(self) -> tuple[str, str, str] | None:
        """Returns rule, cause and remedy of the limit that is exceeded, or None."""
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(self._pid)
            self.below = worker.children(recursive=True)
            self.peak = max(self.peak, _held(worker) + sum(_held(one) for one in self.below))
        if self._limits.memory and self.peak > self._limits.memory:
            held, limit = self.peak / 1e9, self._limits.memory / 1e9
            return "memory-limit", f"the worker held {held:.1f} GB, more than the {limit:.1f} GB allowed", "raise --max-memory"
        if self._limits.seconds and time.monotonic() - self._started > self._limits.seconds:
            return (
                "time-limit",
                f"not done after {self._limits.seconds:.0f} s",
                "raise --timeout; a rerun goes on behind the finished steps that are kept",
            )
        return None


def _held(process: psutil.Process) -> int:
    """Returns the resident bytes of a process; 0 where it has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
