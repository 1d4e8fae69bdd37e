"""The process that makes the inputs of a benchmark's sides, from the parent's side."""

from __future__ import annotations

import json
from pathlib import Path

from runner.bench.inputs_record import Inputs, Request
from runner.errors import RunFailed
from runner.evaluation.subject_process import failed, start_python, stop


def prepare(request: Request, log: Path | None = None) -> Inputs:
    """Makes the inputs of both sides in a process of its own.

    Raises:
        RecipeError: what that process reported.
        RunFailed: it died.
    """
    stderr = log.open("a", encoding="utf-8") if log else None
    try:
        process = start_python("runner.bench.inputs", stderr, TRANSFORMERS_VERBOSITY="error")
    finally:
        if stderr:
            stderr.close()
    try:
        answer, _ = process.communicate(request.to_line() + "\n")
    finally:
        stop(process)
    if not answer.strip():
        raise RunFailed(
            "worker-died",
            f"the process that prepares inputs ended with code {process.returncode}",
            log=str(log) if log else None,
        )
    told = json.loads(answer)
    if "failed" in told:
        raise failed(told["failed"], "preparing inputs", log)
    return Inputs.from_json(told)
