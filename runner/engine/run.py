"""From a request to a model in the output folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.engine.places import places
from runner.engine.plan import Plan, make_plan
from runner.engine.publish import check_writable, finished_model, is_current, publish, read_receipt
from runner.engine.request import Request, makes_genai
from runner.engine.store import Entry, Store, explain_write_failure
from runner.errors import GateMissed, Place, Problem, RunFailed
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle
from runner.models.source import Access
from runner.targets.target import require

if TYPE_CHECKING:
    from runner.engine.ahead import Ahead
    from runner.engine.estimate import Needs
    from runner.engine.events import Event
    from runner.engine.limits import Limits


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        plan: what was decided.
        model: the result in the output folder.
        receipt: what receipt.json says.
        source: the model that everything is compared with (a transformers folder, where there is one).
        log: the worker's log; None when no worker was needed.
        written: whether the output folder was filled; False where it held exactly this already.
        made: names of the steps that this run made itself.
        seconds: wall time of the whole run.
    """

    plan: Plan
    model: ModelHandle
    receipt: dict[str, Any]
    source: ModelHandle
    log: Path | None
    written: bool
    made: frozenset[str]
    seconds: float


def plan_run(
    request: Request,
    say: Callable[[str], None],
    fetch: bool = True,
    force: bool = False,
    max_memory: int | None = None,
    ahead: Ahead | None = None,
) -> Plan:
    """Returns the plan of a request; fetches the source model unless told not to.

    Args:
        request: what is asked for.
        say: told what is being done.
        fetch: fetch the source model where it is not here.
        force: fetch it even where this machine is too small for the run.
        max_memory: bytes that the worker is allowed; all of the machine's when None.
        ahead: starts the worker while a large source is hashed.

    Raises:
        DoesNotFit: this machine has too little memory or disk; nothing was fetched.
        RecipeError: whatever else stands in the way.
    """
    if fetch and not force and not request.smoke:
        planned = _plan(request, say, fetch=False, ahead=ahead)
        whole = planned.source.handle is not None and not planned.lacks
        needs = None if planned.complete else _needs(planned)
        if needs is not None or whole:
            require(planned.target, genai=makes_genai(request.config))
        if needs is not None:
            from runner.engine.fit import check_fit

            check_fit(planned, needs, max_memory)
        if whole:
            return planned  # nothing is to be fetched and nothing is missing: a second look would find the same
    return _plan(request, say, fetch, ahead)


def _needs(plan: Plan) -> Needs | None:
    from runner.engine.estimate import estimate  # a run with nothing left to make does without

    return estimate(plan)


def _plan(request: Request, say: Callable[[str], None], fetch: bool, ahead: Ahead | None) -> Plan:
    where = places(request.config.cache_dir)
    try:
        with DigestMemo(where.digests, ahead.start if ahead else lambda: None) as memo:
            access = Access(where.models, memo, request.offline, fetch, request.trust, say)
            return make_plan(request, where, Store(where, memo), memo, access)
    except OSError as error:
        raise explain_write_failure(error, where.root) from None


def execute(plan: Plan, listen: Callable[[Event], None], limits: Limits | None = None, ahead: Ahead | None = None) -> Outcome:
    """Does what the plan says and returns what came of it.

    Args:
        plan: with its source fetched.
        listen: told what happens.
        limits: what the worker may use.
        ahead: has a worker, perhaps.

    Raises:
        RunFailed, StoreError, Interrupted: see there. Finished steps are kept.
        GateMissed: the model was made and published, but a goal of its evaluator is not met.
    """
    started = time.perf_counter()
    check_writable(plan.output)
    with DigestMemo(plan.places.digests) as memo, ExitStack() as reads:
        store = Store(plan.places, memo)
        log = None
        made: set[str] = set()

        def follow(event: Event) -> None:
            if event.kind == "step-started":
                made.add(event.step)
            listen(event)

        if not plan.complete:
            from runner.engine.work import work  # a run with nothing left to make needs neither estimates nor a worker

            log = work(plan, follow, limits, store, ahead)
            memo.forget()  # the worker has learned more
        reads.enter_context(store.reading(plan.steps[-1].fingerprint or ""))
        entry = _last(plan, store)
        evaluation = store.get(plan.evaluation) if plan.evaluation else None
        result = evaluation.record["result"] if evaluation else {"metrics": [], "missed": [], "notes": []}
        checked = store.get(plan.structure) if plan.structure else None
        structure = checked.record["result"] if checked else None
        written = log is not None or not is_current(entry, plan.output, memo)
        receipt = read_receipt(plan.output) or {}
        if written:
            from runner.engine.receipt import make_receipt

            receipt = make_receipt(plan, entry, store, structure, result)
            publish(entry, plan.output, receipt, memo)
        model = ModelHandle.from_json(entry.record["handle"], plan.output)
        source = _source(plan, store)
    if result["missed"]:
        raise GateMissed(*(Problem("goal-missed", text, Place(str(plan.request.loaded.files[0]))) for text in result["missed"]))
    return Outcome(plan, model, receipt, source, log, written, frozenset(made), time.perf_counter() - started)


def as_it_lies(plan: Plan, listen: Callable[[Event], None]) -> Outcome:
    """Returns the outcome of the run that left the finished model in the output folder, which is taken as it is.

    Args:
        plan: with its source fetched; a source step that is not stored is made again.
        listen: told what happens.

    Raises:
        RunFailed: the folder holds no finished model, or the source step failed.
    """
    started = time.perf_counter()
    found, receipt = finished_model(plan.output), read_receipt(plan.output)
    if found is None or receipt is None:
        raise RunFailed("result-missing", f"{plan.output} holds no finished model", "make it with 'recipe run'")
    log = None
    with DigestMemo(plan.places.digests) as memo:
        store = Store(plan.places, memo)
        if plan.source.step is not None and not plan.steps[0].cached:
            from runner.engine.work import work

            first = replace(plan, steps=plan.steps[:1], evaluation=None, structure=None)
            log = work(first, listen, None, store, None)
            memo.forget()
        source = _source(plan, store)
    return Outcome(plan, found[0], receipt, source, log, False, frozenset(), time.perf_counter() - started)


def _last(plan: Plan, store: Store) -> Entry:
    entry = store.get(plan.steps[-1].fingerprint or "")
    if entry is None:
        raise RunFailed(
            "result-missing",
            "the worker is done, but the store has no result",
            "run again; 'recipe cache verify' checks the store",
        )
    return entry


def _source(plan: Plan, store: Store) -> ModelHandle:
    if plan.source.step is not None:
        entry = store.get(plan.steps[0].fingerprint or "")
        if entry is not None:
            return entry.model
    if plan.source.handle is None:
        raise ValueError("the source model has not been fetched")
    return plan.source.handle
