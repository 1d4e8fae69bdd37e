"""The worker process: walks the steps of one job and stores each result. Run as ``python -m runner.engine.worker``.

See `runner.engine.child` for its streams, and `runner.engine.parts` for steps on a pipeline.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Thread

from runner.engine.ahead import preparation
from runner.engine.capacity import memory
from runner.engine.child import exit_at_once, failure, take_jobs, write_to_log
from runner.engine.events import Event
from runner.engine.job import Job
from runner.engine.parts import PartFailed, Parts
from runner.engine.plan import Step
from runner.engine.readers import Reader
from runner.engine.store import Entry, Store, flush
from runner.evaluation.evaluate import evaluate
from runner.evaluation.parity import Parity
from runner.evaluation.placement import placement_apart
from runner.evaluation.structure import check_structure
from runner.models.digest import DigestMemo, files_below
from runner.models.handle import ModelHandle
from runner.models.sharded_weights import Outlasts
from runner.models.spent_files import Inode
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import what_is_missing

FAILED = 1
SAID_KEPT = 20  # lines of what a pass told that its record keeps


@dataclass
class Walk:
    """The state of one job on its way through the steps."""

    job: Job
    store: Store
    emit: Callable[[Event], None]
    reads: ExitStack = field(default_factory=ExitStack)
    reader: Reader | None = None

    def run(self) -> None:
        """Makes what is missing, from behind the last finished step."""
        with ExitStack() as self.reads:
            self._run()

    def _run(self) -> None:
        job = self.job
        first = next((at + 1 for at in reversed(range(len(job.steps))) if job.steps[at].cached), 0)
        model = job.source
        if first:
            key = job.steps[first - 1].fingerprint or ""
            with self.store.lock(key):
                found = self.store.get(key)
                self._read(key)
            if found is None:  # taken away since the plan was made
                first = 0
            else:
                model = found.model
        for at, step in enumerate(job.steps[first:], first):
            before = job.steps[at - 1] if job.no_artifacts and at > first else None
            model = self._step(step, model, before)
            if before is not None:
                self._drop(before)
        if job.structure is not None:
            self._check_structure(model)
        if job.evaluation is not None:
            self._evaluate(model)

    @cached_property
    def parity(self) -> Parity:
        """The check against the source, made when a step first needs it; it keeps the source's outputs."""
        return Parity(self.source, self.job.threads, self.job.target.name)

    @cached_property
    def source(self) -> ModelHandle:
        """What everything is compared with: the source step's result where there is one, or the source itself."""
        first = self.job.steps[0]
        if first.pass_name not in table.SOURCE_MODULES:
            return self.job.source
        entry = self.store.get(first.fingerprint or "")
        if entry is None:
            self.emit(Event("step-started", first.name, first.pass_name))
            entry = self._make(first, first.fingerprint or "", self.job.source)
        return entry.model

    def _read(self, key: str) -> None:
        """Reads an entry from now on, and the one before no more."""
        self.reads.close()
        self.reader = self.reads.enter_context(self.store.reading(key))

    def _step(self, step: Step, model: ModelHandle, before: Step | None) -> ModelHandle:
        key = step.fingerprint
        if key is None:
            raise ValueError(f"step {step.name} has no fingerprint")
        with self.store.lock(key):
            entry = None if self.job.no_cache else self.store.get(key)
            if entry is None:
                self.emit(Event("step-started", step.name, step.pass_name))
                entry = self._make(step, key, model, before)
            self._read(key)
        self.emit(Event("step-finished", step.name, step.pass_name, {"seconds": entry.record["seconds"]}))
        return entry.model

    def _drop(self, step: Step) -> None:
        """Deletes what a step of this run left, once the next step has been made of it; the source is needed on."""
        entry = None if step.pass_name in table.SOURCE_MODULES else self.store.told(step.fingerprint or "")
        if entry is not None:
            with self.store.lock(entry.fingerprint):
                self.store.empty(entry)

    def _take_over(self, step: Step | None, folder: Path, undone: ExitStack) -> frozenset[Inode]:
        """Gives up what a step of this run left; see `PassContext.take_over`."""
        entry = None
        if step is not None and step.pass_name not in table.SOURCE_MODULES:
            entry = self.store.get(step.fingerprint or "")
        if entry is None or self.reader is None:
            return frozenset()
        files = self.store.take_over(entry, self.reader, folder)
        if files:
            undone.callback(self.store.empty, entry)
        return files

    def _outlasts(self, step: Step, before: Step | None) -> Outlasts | None:
        """Returns what says which files of a step's input stay when its result goes; see `PassContext.outlasts`."""
        if not self.job.no_artifacts or step is self.job.steps[-1]:
            return None
        if before is None or before.pass_name in table.SOURCE_MODULES:
            return lambda _: True
        return lambda file: file.stat().st_nlink > 1  # a link itself; what a step has made has one name

    def _make(self, step: Step, key: str, model: ModelHandle, before: Step | None = None) -> Entry:
        pass_ = table.get(step.pass_name)
        options = pass_.options.model_validate(step.options)
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self.emit(Event("said", step.name, text))

        def count(done: int, total: int, news: str) -> None:
            event = Event.of_progress(step.name, done, total, news)
            if event.text:
                said.append(event.text)
            self.emit(event)

        with self.store.workspace() as folder, ExitStack() as undone:
            output, scratch = folder / "output", folder / "scratch"
            output.mkdir()
            scratch.mkdir()
            kept = self.job.places.kept / key
            there = min(memory().free, self.job.memory or sys.maxsize)
            context = PassContext(
                output, scratch, self.job.target, self.job.threads, partial(self.job.open_data, model), say, kept, count, there,
                partial(self._take_over, before, folder, undone), self._outlasts(step, before),
            )  # fmt: skip
            started = time.perf_counter()
            made, components = Parts(self.job, step, self.store).apply(pass_, model, options, context)
            seconds = time.perf_counter() - started
            parity = None
            settling = Thread(target=self._settle, args=(output,), daemon=True)
            settling.start()  # beside the check, whose threads wait for memory most of the time
            if reason := self.job.unchecked.get(step.name):
                say(f"the check against the source is left out: {reason}")
                parity = {"numeric": False, "reason": f"left out: {reason}", "outputs": {}}
            elif pass_.name not in table.SOURCE_MODULES:
                self.emit(Event("said", step.name, "checking the result against the source model"))
                parity = self.parity.compare(made)
            record = {
                "step": step.name,
                "pass": step.pass_name,
                "ingredients": step.ingredients,
                "handle": made.to_json(),
                "said": said[-SAID_KEPT:],
                "seconds": seconds,
                "components": components,
                "parity": parity,
                "parity_seconds": time.perf_counter() - started - seconds,
            }
            settling.join()
            entry = self.store.put(key, output, record)
            shutil.rmtree(kept, ignore_errors=True)
            return entry

    def _settle(self, output: Path) -> None:
        """Has what a step left on the disk, and known to the store, by the time that the store asks."""
        with contextlib.suppress(OSError):  # the store finds it too, and tells
            files = files_below(output)
            for _, path in files:
                flush(path)
            self.store.memo.of_files(files)

    def _check_structure(self, model: ModelHandle) -> None:
        key = self.job.structure or ""
        with self.store.lock(key):
            if not self.job.no_cache and self.store.get(key) is not None:
                return
            self.emit(Event("said", text=f"looking up the kernels of {self.job.target.provider}"))
            started = time.perf_counter()
            found = check_structure(model, self.job.target)
            if found is not None and what_is_missing(self.job.target) is None:
                found["placed"] = placement_apart(model, self.job.threads, self.job.target.provider, self.job.log)
            record = {"step": "structure", "pass": "structure", "handle": model.to_json(), "ingredients": {},
                      "result": found, "seconds": time.perf_counter() - started}  # fmt: skip
            with self.store.workspace() as folder:
                (folder / "output").mkdir()
                self.store.put(key, folder / "output", record)

    def _evaluate(self, model: ModelHandle) -> None:
        key = self.job.evaluation or ""
        with self.store.lock(key):
            entry = None if self.job.no_cache else self.store.get(key)
            if entry is None:
                self.emit(Event("evaluation-started", text="measuring"))
                started = time.perf_counter()
                result = evaluate(
                    model,
                    self.source,
                    self.job.config,
                    self.job.folder,
                    self.job.threads,
                    self.job.smoke,
                    self.job.scripts_allowed,
                    self.job.target,
                )
                record = {"step": "evaluation", "pass": "evaluation", "handle": model.to_json(), "result": result.to_json(),
                          "seconds": time.perf_counter() - started, "ingredients": {}}  # fmt: skip
                with self.store.workspace() as folder:
                    (folder / "output").mkdir()
                    entry = self.store.put(key, folder / "output", record)
        self.emit(Event("evaluation-finished", data={"seconds": entry.record["seconds"]}))


def main() -> int:
    """Takes a job from standard input, does it, and returns the exit code."""
    lines, events = take_jobs()
    line = next(lines)
    if (asked := preparation(line)) is not None:
        imports, offline = asked
        write_to_log(Path(os.devnull))  # there is no log before there is a job
        _keep_off_the_hub(offline)
        imports()
        line = next(lines)
    job = Job.parse(line)
    write_to_log(job.log)
    _keep_off_the_hub(job.offline)
    current = ""

    def emit(event: Event) -> None:
        nonlocal current
        current = event.step or current
        event.send(events)

    with DigestMemo(job.places.digests) as memo:
        try:
            Walk(job, Store(job.places, memo), emit).run()
        except BaseException as error:  # the parent reports it; the traceback is for the log
            traceback.print_exc()
            sys.stderr.flush()
            emit(error.event if isinstance(error, PartFailed) else failure(error, current, job.places.root))
            return FAILED
    emit(Event("done"))
    return 0


def _keep_off_the_hub(offline: bool) -> None:
    if offline:  # before anything imports the hub's libraries, which try it for half a minute
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


if __name__ == "__main__":
    exit_at_once(main())
