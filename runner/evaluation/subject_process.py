"""The parent's side of a subject: starts the process, asks it, and turns its death into a plain error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from runner.errors import InvalidRecipe, Place, Problem, RecipeError, RunFailed
from runner.models.handle import ModelHandle

_GRACE_SECONDS = 3.0


class SubjectProcess:
    """A process with one model in it. Use it as a context manager; the process ends with the block.

    Args:
        model: the model that it will hold.
        name: how people call it, for errors: ``baseline``, ``optimised``.
        log: file that gets whatever the libraries print; this process's standard error when None.
    """

    def __init__(self, model: ModelHandle, name: str, log: Path | None = None) -> None:
        self.model = model
        self.name = name
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> SubjectProcess:
        with contextlib.ExitStack() as stack:
            stderr = stack.enter_context(self._log.open("a", encoding="utf-8")) if self._log else None
            self._process = start_python("runner.evaluation.subject", stderr, TRANSFORMERS_VERBOSITY="error")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            stop(self._process)

    @property
    def pid(self) -> int:
        """Returns the id of the process."""
        if self._process is None:
            raise ValueError("the subject has not been started")
        return self._process.pid

    def load(self, threads: int, provider: str, generates: bool, form: str = "fp32") -> float:
        """Loads the model and returns the seconds that took, without imports and with the files in the system's cache.

        See `runner.evaluation.subject.Subject.load`.
        """
        answer = self.ask(
            "load", model=self.model.to_json(), threads=threads, provider=provider, generates=generates, form=form
        )
        return float(answer["seconds"])

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """Asks and waits for the answer; questions are the public methods of `runner.evaluation.subject.Subject`.

        Raises:
            RecipeError: what the subject reported.
            RunFailed: it died.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ValueError("the subject has not been started")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"question": question, **arguments}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise _died(process.wait(), self.name, question, self._log)
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise failed(answer["failed"], self.name, self._log)
        return answer


def start_python(module: str, stderr: IO[str] | None = None, *, apart: bool = True, **variables: str) -> subprocess.Popen[str]:
    """Starts a Python module with pipes for its input and output.

    Args:
        module: run as ``python -m MODULE``.
        stderr: where its standard error goes; to this process's own when None.
        apart: Ctrl-C at the terminal does not reach it.
        variables: of its environment, where they are not set.
    """
    import runner

    root = str(Path(runner.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {"TOKENIZERS_PARALLELISM": "false", **variables, **os.environ, "PYTHONPATH": path}
    group: dict[str, Any] = {}
    if apart:
        # 0x200 is CREATE_NEW_PROCESS_GROUP
        group = {"creationflags": 0x00000200} if os.name == "nt" else {"start_new_session": True}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env=environment,
        **group,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a process: its input is closed first, and it is killed when that does not help."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def failed(told: dict[str, Any], name: str, log: Path | None) -> RecipeError:
    """Returns the error that a process told, as `runner.evaluation.subject.failure` wrote it."""
    place = Place(f"log {log}") if log else None
    problems = [Problem(rule, f"{name}: {cause}", place, remedy) for rule, cause, remedy in told["problems"]]
    kind = InvalidRecipe if told["exit_code"] == InvalidRecipe.exit_code else RecipeError
    return kind(*problems)


def _died(code: int, name: str, question: str, log: Path | None) -> RunFailed:
    if code == -signal.SIGKILL if os.name != "nt" else False:
        return RunFailed(
            "worker-killed",
            f"the {name} process was killed while asked to {question}",
            "most often the system ran out of memory",
            str(log) if log else None,
        )
    return RunFailed(
        "worker-died", f"the {name} process ended with code {code} while asked to {question}", log=str(log) if log else None
    )
