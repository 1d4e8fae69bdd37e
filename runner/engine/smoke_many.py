"""Many runs of the command line, each in a process of its own: what came of them, and what they told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import runner
from runner.engine.places import places
from runner.targets.target import usable_cores

SECONDS = 900.0
BUG_OF_OURS = 3
# A problem as the command line tells it: place, rule, cause.
_PROBLEM = re.compile(r"^(?:(?P<place>\S.*?:\d+|\S+\.json): )?(?P<rule>[a-z][a-z0-9-]+): (?P<cause>.+)$")


@dataclass(frozen=True)
class Finished:
    """A command that ended.

    Attributes:
        code: its exit code; None where it was stopped because it took too long.
        told: what it wrote to stderr.
        printed: what it wrote to stdout.
        seconds: wall time.
    """

    code: int | None
    told: str
    printed: str
    seconds: float

    @property
    def problems(self) -> tuple[str, ...]:
        """Returns the problems that it told, a line each, without places; in brackets the first line of the remedy."""
        return tuple(_problems(self.told))

    @property
    def crashed(self) -> bool:
        """Returns whether it ended in a way that is no person's fault: a bug, a signal, or a failure without a word."""
        if self.code is None or self.code == 0:
            return False
        return self.code == BUG_OF_OURS or self.code < 0 or "Traceback" in self.told or not self.problems


@dataclass(frozen=True)
class Smoked:
    """What came of the smoke run of a variant.

    Attributes:
        id: what was run.
        code: exit code; None after a timeout.
        seconds: wall time.
        cause: why it failed; empty where it did not.
        log: what the failed command wrote; None where it did not fail.
    """

    id: str
    code: int | None
    seconds: float
    cause: str = ""
    log: Path | None = None

    @property
    def passed(self) -> bool:
        """Returns whether the run ended well."""
        return self.code == 0


class Commands:
    """Runs `recipe` in processes of their own, and ends them when it is left.

    Args:
        threads: threads that each command may compute with.
        cache: the cache that all share; the user's by default.
    """

    def __init__(self, threads: int, cache: Path | None = None) -> None:
        root = str(Path(runner.__file__).parents[1])
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(threads),
            "NO_COLOR": "1",
            **({"RECIPE_CACHE": str(cache)} if cache else {}),
        }
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()

    def run(self, arguments: Sequence[str], folder: Path, seconds: float) -> Finished:
        """Returns what came of `recipe ARGUMENTS`, started in a folder and stopped after some seconds."""
        started = time.monotonic()
        with self._lock:
            if self._stopped:
                return Finished(None, "", "", 0.0)
            process = subprocess.Popen(
                [sys.executable, "-m", "runner", *arguments],
                cwd=folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
        try:
            printed, told = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.terminate()  # the command ends its worker before itself
            printed, told = process.communicate()
            code, told = None, f"{told}\ntimeout: not done after {seconds:.0f} s\n"
        finally:
            with self._lock:
                self._running.discard(process)
        return Finished(code, told, printed, time.monotonic() - started)


def smoke_many(
    variants: Mapping[str, Path], jobs: int, seconds: float = SECONDS, trust: bool = False, threads: int | None = None
) -> Iterator[Smoked]:
    """Yields what came of `recipe run CONFIG --smoke` for each variant, as soon as it is done.

    The models go to a scratch folder and are deleted; what a failed command wrote is kept among the logs.

    Args:
        variants: id to config file.
        jobs: how many run at once.
        seconds: after which a run is stopped.
        trust: scripts of folders outside of the catalogue may be executed.
        threads: threads of each run; by default the runs share the cores.
    """
    threads = threads or max(1, usable_cores() // jobs)
    with (
        tempfile.TemporaryDirectory(prefix="recipe-smoke-", ignore_cleanup_errors=True) as scratch,
        ThreadPoolExecutor(jobs) as pool,
        Commands(threads) as commands,
    ):
        pending = [
            pool.submit(_smoke, commands, id_, _arguments(config, Path(scratch, str(number)), threads, trust), seconds)
            for number, (id_, config) in enumerate(variants.items())
        ]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _arguments(config: Path, output: Path, threads: int, trust: bool) -> list[str]:
    flags = ["--smoke", *(["--trust"] if trust else [])]
    return ["run", str(config), *flags, "--threads", str(threads), "--output-dir", str(output)]


def _smoke(commands: Commands, id_: str, arguments: Sequence[str], seconds: float) -> Smoked:
    output = Path(arguments[-1])
    done = commands.run(arguments, output.parent, seconds)
    shutil.rmtree(output, ignore_errors=True)
    if done.code == 0:
        return Smoked(id_, 0, done.seconds)
    cause = "; ".join(done.problems) or (done.told.strip().splitlines() or ["it said nothing"])[-1]
    if done.code is not None and not done.problems:
        cause = f"exit code {done.code}: {cause}"
    return Smoked(id_, done.code, done.seconds, cause, _keep_log(id_, arguments, done))


def _keep_log(id_: str, arguments: Sequence[str], done: Finished) -> Path:
    folder = places().logs
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"smoke-{time.strftime('%Y%m%d-%H%M%S')}-{id_.replace('/', '-')}-{time.time_ns() % 10**6:06d}.log"
    text = f"recipe {' '.join(arguments)}\nexit code {done.code} after {done.seconds:.1f} s\n\n{done.printed}\n{done.told}"
    log.write_text(text, encoding="utf-8")
    return log


def _problems(told: str) -> Iterator[str]:
    lines = told.splitlines()
    for at, line in enumerate(lines):
        found = _PROBLEM.match(line)
        if found is not None:
            remedy = lines[at + 1].strip() if at + 1 < len(lines) and lines[at + 1].startswith("    ") else ""
            yield f"{found['rule']}: {found['cause']}" + (f" ({remedy})" if remedy else "")
