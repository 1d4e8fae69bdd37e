"""What a step makes of each component of a pipeline: taken from the store, or made, several at once where they fit.

A component's result is an entry of the store like a step's, under a key of the same ingredients with the digest of the
component's files in place of the model's. So a component is made again only when something that concerns it has changed, an
interrupted step goes on behind the components that are done, and recipes share what they have in common.
"""

from __future__ import annotations

import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil

from runner.engine import child
from runner.engine.capacity import memory
from runner.engine.estimate import component_bytes, component_memory
from runner.engine.events import Event
from runner.engine.fingerprint import component_digest, fingerprint, step_ingredients
from runner.engine.job import Job, PartJob
from runner.engine.plan import Step
from runner.engine.store import Entry, Store
from runner.errors import RunFailed
from runner.evaluation.subject_process import start_python
from runner.models.components import parts_of
from runner.models.digest import DigestMemo, files_below
from runner.models.files import link
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_component import Part, apply_pass, is_taken_apart, make
from runner.targets.target import Target

State = Literal["made", "stored", "left"]
Build = Callable[[Part, Path], ModelHandle]

PROCESS = "runner.engine.part_process"
# Starting one takes 6 s of a core, in which the libraries are imported; an export works on some 65 MB/s.
WORTH_A_PROCESS = 300_000_000  # bytes of components for it, and of the one beside which it works
_SPARE = 0.9  # share of the free memory that is planned with


class PartFailed(Exception):
    """A component could not be made; the event tells why."""

    def __init__(self, event: Event) -> None:
        super().__init__(event.text)
        self.event = event


@dataclass(frozen=True)
class Told:
    """What the record and the receipt say of a component.

    Attributes:
        state: made by this run of the step, taken from the store, or left as it was.
        fingerprint: its key in the store; None where it was left.
        seconds: what making it took, now or then.
        bytes: size of its files.
        options: those of the component where they are not the step's.
    """

    state: State
    fingerprint: str | None
    seconds: float
    bytes: int
    options: Mapping[str, Any]


class Parts:
    """Makes the components of one step.

    Args:
        job: the run.
        step: the step.
        store: where finished components are.
    """

    def __init__(self, job: Job, step: Step, store: Store) -> None:
        self._job, self._step, self._store = job, step, store
        self._stored = threading.Lock()  # the store's memory of digests is for one thread at a time
        self._saying = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._failed: Exception | None = None

    def apply(self, pass_: Pass, model: ModelHandle, options: Any, context: PassContext) -> tuple[ModelHandle, dict[str, Any]]:
        """Returns what the step makes, and what is told of its components (see `Told`) by name; nothing where the model is one.

        Raises:
            PartFailed: a component cannot be made; those that are done are kept.
        """
        told: dict[str, Told] = {}
        make_all = partial(self._all, pass_, model, options, told)
        made = apply_pass(pass_, model, options, context, self._step.components, make_all)
        if is_taken_apart(pass_, model):
            for name, part in parts_of(made).items():
                told.setdefault(name, Told("left", None, 0.0, component_bytes(part), {}))
        return made, {name: asdict(one) for name, one in told.items()}

    def _all(
        self, pass_: Pass, model: ModelHandle, options: Any, told: dict[str, Told], parts: Sequence[Part], context: PassContext
    ) -> Mapping[str, ModelHandle]:
        """Returns the components that the pass changes, from the store or made, and tells of them."""
        context = replace(context, say=self._one_at_a_time(context.say))
        keys = {part.name: part_ingredients(pass_, part, self._step, context.target, self._store.memo) for part in parts}
        done: dict[str, tuple[Entry, State]] = {}
        for part in parts:
            if (entry := self._find(fingerprint(keys[part.name]))) is not None:
                context.say(f"{part.name}: from the store")
                done[part.name] = entry, "stored"
        done |= self._make_missing(pass_, model, [part for part in parts if part.name not in done], keys, context)
        shared = options.model_dump(mode="json")
        for name, (entry, state) in done.items():
            own = {key: value for key, value in entry.record["ingredients"]["options"].items() if shared.get(key) != value}
            told[name] = Told(state, entry.fingerprint, entry.record["seconds"], entry.size, own)
        return {name: _linked(entry, context.output / name) for name, (entry, _) in done.items()}

    def _one_at_a_time(self, say: Callable[[str], None]) -> Callable[[str], None]:
        def said(text: str) -> None:
            with self._saying:
                say(text)

        return said

    # --- one component ---

    def _find(self, key: str) -> Entry | None:
        with self._stored:
            return None if self._job.no_cache else self._store.get(key)

    def _entry(self, part: Part, ingredients: Mapping[str, Any], build: Build) -> tuple[Entry, State]:
        """Returns the entry of a component, made unless another run has made it meanwhile."""
        key = fingerprint(ingredients)
        with self._store.lock(key):
            if (entry := self._find(key)) is not None:
                return entry, "stored"
            with self._store.workspace() as folder:
                for name in ("output", "scratch"):
                    (folder / name).mkdir()
                started = time.perf_counter()
                model = build(part, folder)
                record = {
                    "step": self._step.name,
                    "pass": self._step.pass_name,
                    "component": part.name,
                    "ingredients": ingredients,
                    "handle": model.to_json(),
                    "seconds": time.perf_counter() - started,
                }
                with self._stored:
                    return self._store.put(key, folder / "output", record), "made"

    def _build_here(self, pass_: Pass, context: PassContext, part: Part, folder: Path) -> ModelHandle:
        own = replace(
            context,
            output=folder / "output",
            scratch=folder / "scratch",
            data=partial(self._job.open_data, part.model),
            say=lambda text: context.say(f"{part.name}: {text}"),
            counted=None,  # several components may count at once
        )
        try:
            return make(pass_, part, own)
        except Exception as error:
            traceback.print_exc()  # for the log
            raise self._failure(part, child.failure(error, self._step.name, self._job.places.root)) from error

    def _build_apart(self, process: subprocess.Popen[str], context: PassContext, part: Part, folder: Path) -> ModelHandle:
        options = _plain(part.options)
        job = PartJob(self._job, self._step.name, self._step.pass_name, part.name, part.model, options, folder, context.threads)
        child.hand(process, job.to_line())
        for line in process.stdout or ():
            event = Event.parse(line)
            if event is None:
                continue
            if event.kind == "said":
                context.say(f"{part.name}: {event.text}")
            elif event.kind == "failed":
                raise self._failure(part, event)
            elif event.kind == "done":
                return ModelHandle.from_json(event.data["handle"])
        rule, cause, remedy = child.death(process.wait(), "its process", 0)
        problem = {"rule": rule, "cause": cause, "remedy": remedy, "place": None}
        raise self._failure(part, Event("failed", data={"problems": [problem], "exit_code": 1, "kind": RunFailed.__name__}))

    def _failure(self, part: Part, event: Event) -> PartFailed:
        return PartFailed(replace(event, step=self._step.name, data={**event.data, "component": part.name}))

    # --- all of them ---

    def _make_missing(
        self, pass_: Pass, model: ModelHandle, missing: list[Part], keys: Mapping[str, Mapping[str, Any]], context: PassContext
    ) -> dict[str, tuple[Entry, State]]:
        """Returns the entries of components that are not stored yet.

        This process begins with the largest; others are made meanwhile in processes beside it, as many as memory and threads
        allow and as pay for their start.
        """
        sizes = {part.name: component_bytes(part.model) for part in missing}
        waiting = sorted(missing, key=lambda part: -sizes[part.name])
        beside = self._beside(model, waiting, sizes, context.threads)
        threads = max(1, context.threads // (beside + 1))
        if beside:
            context.say(f"{beside + 1} components at once, {threads} thread{'s' if threads > 1 else ''} each")
        own = replace(context, threads=threads)
        done: dict[str, tuple[Entry, State]] = {}
        taking = threading.Lock()

        def take() -> Part | None:
            with taking:
                return waiting.pop(0) if waiting and not self._failed else None

        def work(part: Part | None, build: Build) -> None:
            while part is not None:
                try:
                    done[part.name] = self._entry(part, keys[part.name], build)
                except Exception as error:
                    self._failed = self._failed or error
                    for process in list(self._running):
                        process.kill()
                part = take()

        def work_apart(part: Part | None) -> None:
            process = start_python(PROCESS, apart=False)
            self._running.add(process)
            try:
                work(part, partial(self._build_apart, process, own))
            finally:
                self._running.discard(process)
                child.stop(process)

        largest = take()
        with ThreadPoolExecutor(max(1, beside)) as pool:
            lanes = [pool.submit(work_apart, take()) for _ in range(beside)]
            work(largest, partial(self._build_here, pass_, own))
            for lane in lanes:
                lane.result()
        if self._failed:
            raise self._failed
        return done

    def _beside(self, model: ModelHandle, waiting: Sequence[Part], sizes: Mapping[str, int], threads: int) -> int:
        """Returns how many processes work beside this one: no more than fit with the largest components in all of them."""
        if not waiting or sizes[waiting[0].name] < WORTH_A_PROCESS:
            return 0
        rest = sum(sizes[part.name] for part in waiting[1:])
        most = min(len(waiting) - 1, threads - 1, rest // WORTH_A_PROCESS)
        options = {part.name: _plain(part.options) for part in waiting}
        needs = component_memory(model, sizes, options, self._step.pass_name, self._job.target.name) if most else None
        if needs is None:
            return 0
        free = _SPARE * memory().free
        if self._job.memory is not None:
            free = min(free, self._job.memory - psutil.Process().memory_info().rss)
        largest = sorted(needs.values(), reverse=True)
        return max((count for count in range(1, most + 1) if sum(largest[: count + 1]) <= free), default=0)


def part_ingredients(pass_: Pass, part: Part, step: Step, target: Target, memo: DigestMemo) -> dict[str, Any]:
    """Returns everything that decides what a step makes of a component that it does not leave as it is."""
    data = dict(step.ingredients["data"])
    for pattern, own in step.ingredients.get("components", ()):
        if own and fnmatchcase(part.name, pattern):
            data |= own["data"]
    options, digest = _plain(part.options), component_digest(part.model, memo)
    return {**step_ingredients(pass_, options, digest, target, data), "component": part.name}


def _plain(options: Any) -> dict[str, Any]:
    """Returns the options of a component that is not left as it is, as JSON data."""
    plain: dict[str, Any] = options.model_dump(mode="json")
    return plain


def _linked(entry: Entry, folder: Path) -> ModelHandle:
    folder.mkdir()
    for name, path in files_below(entry.files):
        link(path, folder / name)
    return replace(entry.model, folder=folder)
