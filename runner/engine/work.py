"""The part of a run that a worker does: makes room for it, begins its log, and lets it work."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from runner.engine.ahead import Ahead
from runner.engine.estimate import estimate
from runner.engine.events import Event
from runner.engine.fit import checks_left_out
from runner.engine.job import Job
from runner.engine.limits import Limits
from runner.engine.plan import Plan
from runner.engine.store import Store, explain_write_failure
from runner.engine.supervise import supervise

_KEPT_LOGS = 50


def work(plan: Plan, listen: Callable[[Event], None], limits: Limits | None, store: Store, ahead: Ahead | None) -> Path:
    """Makes what a plan has left to make, in a worker process, and returns the worker's log.

    Args:
        plan: with its source fetched.
        listen: told what happens.
        limits: what the worker may use; everything when None.
        store: where the results go.
        ahead: has a worker, perhaps.

    Raises:
        RunFailed, StoreError, Interrupted: see `runner.engine.supervise.supervise`. Finished steps are kept.
    """
    try:
        for folder in (plan.places.store, plan.places.scratch, plan.places.logs):
            folder.mkdir(parents=True, exist_ok=True)
        for path in store.leftovers():
            shutil.rmtree(path, ignore_errors=True)
        log = _new_log(plan)
    except OSError as error:
        raise explain_write_failure(error, plan.places.root) from None
    limits = limits or Limits()
    needs = estimate(plan)
    unchecked = checks_left_out(needs, limits.memory) if needs else {}
    supervise(Job.of_plan(plan, log, limits.memory, unchecked), limits, listen, ahead.take() if ahead else None)
    return log


def _new_log(plan: Plan) -> Path:
    """Begins a log that can be pasted whole into a bug report."""
    receipt_like = {
        "recipe": plan.request.name,
        "command": " ".join(["recipe", *sys.argv[1:]]),
        "source": plan.source.told,
        "steps": " > ".join(step.pass_name for step in plan.steps),
        **(plan.steps[-1].ingredients.get("packages", {})),
    }
    name = re.sub(r"[^\w.-]+", "-", plan.request.name)
    logs: Iterable[Path] = sorted(plan.places.logs.glob("*.log"))
    for old in list(logs)[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    log = plan.places.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{time.time_ns() % 10**6:06d}.log"
    log.write_text("".join(f"{key}: {value}\n" for key, value in receipt_like.items()) + "\n", encoding="utf-8")
    return log
