"""Sides that take turns: each model in a process of its own, a round a turn of every side, who begins changes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from runner.bench.environment import OtherLoad

SUBJECT = Path(__file__).with_name("subject.py")
PAUSE_SECONDS = 0.3  # threads of the side before spin for a while


class PeerFailed(Exception):
    """A side could not be made, loaded or run; the message says why, in one line."""


@dataclass(frozen=True)
class Terms:
    """What holds for all sides.

    Attributes:
        threads: to compute with.
        rounds: turns of every side.
        clock: ``wall``, or ``processor``: the work of a process, which a busy machine changes little; with one thread, since
            threads that wait for one another work too.
    """

    threads: int
    rounds: int
    clock: str = "wall"

    @property
    def remark(self) -> str:
        """Returns what a reader of the figures must know of them."""
        return "" if self.clock == "wall" else f"processor time, {self.threads} thread"


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        name: what the tables call it.
        python: the interpreter of its environment.
        load: arguments of `subject.Subject.load`.
    """

    name: str
    python: Path
    load: Mapping[str, Any]


class Process:
    """A side's process. Use it as a context manager."""

    def __init__(self, side: Side, log: IO[str]) -> None:
        environment = {
            **os.environ,
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment["OMP_NUM_THREADS"] = str(side.load.get("threads", 1))
        self.side = side
        self._running = subprocess.Popen(
            [str(side.python), str(SUBJECT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        self.pid = self._running.pid

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """Asks and waits.

        Raises:
            PeerFailed: the side answers with an error, or has died.
        """
        assert self._running.stdin and self._running.stdout
        try:
            self._running.stdin.write(json.dumps({"question": question, **arguments}) + "\n")
            self._running.stdin.flush()
            line = self._running.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise PeerFailed(f"its process ended with {self._running.wait(timeout=30)}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise PeerFailed(answer["failed"])
        return answer

    def end(self) -> None:
        """Ends the process."""
        if self._running.stdin:
            with contextlib.suppress(OSError):
                self._running.stdin.close()
        try:
            self._running.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()


@contextlib.contextmanager
def loaded(sides: Sequence[Side], log: Path) -> Iterator[tuple[dict[str, Process], dict[str, str]]]:
    """Starts and loads all sides; yields the processes of those that did, and why the others did not."""
    processes: dict[str, Process] = {}
    failed: dict[str, str] = {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(log.open("a", encoding="utf-8"))
        for side in sides:
            process = Process(side, stream)
            stack.callback(process.end)
            try:
                process.ask("load", **side.load)
                processes[side.name] = process
            except PeerFailed as error:
                failed[side.name] = str(error)
        yield processes, failed


def take_turns(
    processes: dict[str, Process], failed: Mapping[str, str], rounds: int, question: str, arguments: Mapping[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str], float]:
    """Asks every side the same question in every round.

    Returns:
        The answers by side, why sides dropped out, and the share of the machine that others used.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes if name not in failed}
    dropped = dict(failed)
    watch = OtherLoad(*(processes[name].pid for name in answers))
    for number in range(rounds):
        names = [name for name in processes if name not in dropped]
        at = number % len(names) if names else 0
        for name in (*names[at:], *names[:at]):
            time.sleep(PAUSE_SECONDS)
            try:
                answers[name].append(processes[name].ask(question, **arguments))
            except PeerFailed as error:
                dropped[name] = str(error)
                del answers[name]
    return answers, dropped, watch.share() if len(dropped) == len(failed) else 0.0


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Returns the median over the rounds of one side's value divided by another's of the same round."""
    return median(one / against for one, against in zip(ours, other, strict=True))
