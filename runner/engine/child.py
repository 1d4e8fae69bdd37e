"""Processes that work for another one: how they take jobs, how they end with it, and what their death is called.

Jobs come as lines of standard input, which stays open: when it ends, whoever started the process is gone and the process ends
too. Events go to the original standard output; whatever the libraries print goes to a log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from runner.engine.events import Event
from runner.engine.store import disk_full, explain_write_failure
from runner.errors import RecipeError

ORPHANED = 130
_NO_SPACE = os.strerror(errno.ENOSPC)
_GRACE_SECONDS = 3.0


# --- of who starts it ------------------------------------------------------------------------------------------------


def hand(child: subprocess.Popen[str], line: str) -> None:
    """Gives a process a job."""
    if child.stdin is None:
        raise ValueError("the process has no standard input")
    with contextlib.suppress(BrokenPipeError):  # one that died at once is reported by its exit code
        child.stdin.write(line + "\n")
        child.stdin.flush()


def stop(child: subprocess.Popen[str]) -> None:
    """Ends a process and those that it started: they are asked first, killed after a moment."""
    below = []
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(child.pid).children(recursive=True)
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    end_all(below)


def end_all(processes: list[psutil.Process]) -> None:
    """Waits a moment for processes that lost their parent, and kills those that are still there."""
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_SECONDS)


def death(code: int, who: str, held: int) -> tuple[str, str, str]:
    """Returns rule, cause and remedy for a process that ended without a word.

    Args:
        code: its exit code.
        who: what it is called, such as ``the worker``.
        held: bytes of memory that it was last seen with; 0 where nobody looked.
    """
    peak = f"; it held {held / 1e9:.1f} GB of this machine's {psutil.virtual_memory().total / 1e9:.1f} GB" if held else ""
    if os.name != "nt" and code == -signal.SIGKILL:
        return (
            "worker-killed",
            f"{who} was killed (SIGKILL){peak}",
            "most often the system ran out of memory; a rerun goes on behind the finished steps that are kept",
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else str(-code)
        return "worker-crashed", f"{who} died of {name}{peak}", "a native library crashed; see the log"
    return "worker-died", f"{who} ended with exit code {code} and said nothing", "see the log"


# --- of the process itself -------------------------------------------------------------------------------------------


def take_jobs() -> tuple[Iterator[str], IO[str]]:
    """Returns the lines of the jobs as they come, and the stream for events; the process ends with whoever started it."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_to_the_end, args=(lines,), daemon=True).start()
    return iter(lines.get, None), events


def write_to_log(file: Path) -> None:
    """Points both output streams at a log."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _read_to_the_end(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(ORPHANED)


def failure(error: BaseException, step: str, root: Path) -> Event:
    """Returns the event that tells why a process stops.

    Args:
        error: what stops it.
        step: the step that it was at.
        root: of the cache, whose disk may be full.
    """
    if isinstance(error, OSError) and not isinstance(error, RecipeError) and error.errno is not None:
        error = explain_write_failure(error, root)
    elif isinstance(error, Exception) and not isinstance(error, RecipeError) and _NO_SPACE in str(error):
        error = disk_full(root)  # libraries written in other languages have errors of their own
    if isinstance(error, RecipeError):
        problems = [
            {"rule": one.rule, "cause": one.cause, "remedy": one.remedy, "place": str(one.place) if one.place else None}
            for one in error.problems
        ]
        return Event("failed", step, data={"problems": problems, "exit_code": error.exit_code, "kind": type(error).__name__})
    if isinstance(error, MemoryError):
        return Event("failed", step, "out of memory", {"memory": True})
    text = str(error).strip().splitlines()
    return Event("failed", step, f"{type(error).__name__}: {text[0] if text else 'no message'}")


def exit_at_once(code: int) -> None:
    """Ends the process. Libraries keep threads that can hang or crash at exit; everything is on disk and flushed by now."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
