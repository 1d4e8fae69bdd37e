"""Runs one worker, passes on what it tells, enforces limits, and turns its death into a plain error."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from runner.engine.events import Event
from runner.engine.job import Job
from runner.errors import (
    GateMissed,
    Interrupted,
    InvalidRecipe,
    Place,
    Problem,
    RecipeError,
    RunFailed,
)

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        memory: resident bytes; None for no limit.
        seconds: wall time; None for no limit.
    """

    memory: int | None = None
    seconds: float | None = None


def supervise(job: Job, limits: Limits, listen: Callable[[Event], None]) -> None:
    """Runs the job in a worker process and returns when it is done.

    Raises:
        RunFailed: the worker failed, died or went over a limit; names the log.
        Interrupted: Ctrl-C reached this process (the command line takes a termination signal for one). The worker is gone
            and its scratch removed.
        RecipeError: what the worker reported as a person's problem, with the exit code it had there.
    """
    worker = _start()
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
    try:
        _write(worker, job.to_line())
        failure = _follow(worker, lines, job, limits, listen)
    except KeyboardInterrupt:
        raise Interrupted() from None
    finally:
        _stop(worker)
        for path in job.places.scratch.glob(f"{worker.pid}-*"):
            shutil.rmtree(path, ignore_errors=True)
    if failure is not None:
        raise failure


def _start() -> subprocess.Popen[str]:
    import runner

    root = str(Path(runner.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    apart: dict[str, Any] = (
        {"creationflags": 0x00000200}  # CREATE_NEW_PROCESS_GROUP: Ctrl-C is this process's to handle
        if os.name == "nt"
        else {"start_new_session": True}
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "runner.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
        encoding="utf-8",
        env=environment,
        **apart,
    )


def _write(worker: subprocess.Popen[str], line: str) -> None:
    if worker.stdin is None:
        raise ValueError("the worker has no standard input")
    with contextlib.suppress(BrokenPipeError):  # a worker that died at once is reported by its exit code
        worker.stdin.write(line + "\n")
        worker.stdin.flush()


def _read(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    for line in stream or ():
        lines.put(line)
    lines.put(None)


def _follow(
    worker: subprocess.Popen[str],
    lines: queue.Queue[str | None],
    job: Job,
    limits: Limits,
    listen: Callable[[Event], None],
) -> RecipeError | None:
    """Listens until the worker is done. Returns what went wrong, or None."""
    watch = _Watch(worker.pid, limits)
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
            return _death(worker, step, job, watch)
        event = Event.parse(line)
        if event is None:
            continue
        step = event.step or step
        if event.kind == "failed":
            return _failure(event, job)
        if event.kind == "done":
            return None
        listen(event)


def _where(step: str, job: Job) -> str:
    found = next((one for one in job.steps if one.name == step), None)
    return f"step '{found.name}' ({found.pass_name}): " if found else ""


def _failure(event: Event, job: Job) -> RecipeError:
    problems = event.data.get("problems")
    if problems is not None:
        kind = {2: InvalidRecipe, 4: GateMissed}.get(event.data["exit_code"], RecipeError)
        return kind(*(_problem(one, event.step, job) for one in problems))
    if event.data.get("memory"):
        return RunFailed(
            "out-of-memory", f"{_where(event.step, job)}out of memory", "use a smaller model or a bigger machine", str(job.log)
        )
    return RunFailed(
        "step-failed",
        f"{_where(event.step, job)}{event.text}",
        "the log holds the traceback; the step is not cached, and a rerun tries it again",
        str(job.log),
    )


def _problem(data: dict[str, Any], step: str, job: Job) -> Problem:
    place = Place(data["place"]) if data["place"] else None
    remedy = "\n    ".join(part for part in (data["remedy"], f"log: {job.log}") if part)
    return Problem(data["rule"], f"{_where(step, job)}{data['cause']}", place, remedy)


def _death(worker: subprocess.Popen[str], step: str, job: Job, watch: _Watch) -> RecipeError:
    """The pipe closed without a word: the process was killed or crashed."""
    code = worker.wait()
    where, log = _where(step, job), str(job.log)
    peak = f"; it held {watch.peak / 1e9:.1f} GB of this machine's {psutil.virtual_memory().total / 1e9:.1f} GB"
    if os.name != "nt" and code == -signal.SIGKILL:
        return RunFailed(
            "worker-killed",
            f"{where}the worker was killed (SIGKILL){peak}",
            "most often the system ran out of memory; finished steps are kept, a rerun goes on behind them",
            log,
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else str(-code)
        return RunFailed(
            "worker-crashed", f"{where}the worker died of {name}{peak}", "a native library crashed; see the log", log
        )
    return RunFailed("worker-died", f"{where}the worker ended with exit code {code} and said nothing", "see the log", log)


class _Watch:
    """Samples a process's memory and age."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid = pid
        self._limits = limits
        self._started = time.monotonic()
        self.peak = 0

    def over(self) -> tuple[str, str, str] | None:
        """Returns rule, cause and remedy of the limit that is exceeded, or None."""
        with contextlib.suppress(psutil.Error):
            self.peak = max(self.peak, psutil.Process(self._pid).memory_info().rss)
        if self._limits.memory and self.peak > self._limits.memory:
            held, limit = self.peak / 1e9, self._limits.memory / 1e9
            return "memory-limit", f"the worker held {held:.1f} GB, more than the {limit:.1f} GB allowed", "raise --max-memory"
        if self._limits.seconds and time.monotonic() - self._started > self._limits.seconds:
            return "time-limit", f"not done after {self._limits.seconds:.0f} s", "raise --timeout; finished steps are kept"
        return None


def _stop(worker: subprocess.Popen[str]) -> None:
    """Ends the worker: it is asked first, killed after a moment."""
    if worker.stdin is not None:
        with contextlib.suppress(OSError):
            worker.stdin.close()
    try:
        worker.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
