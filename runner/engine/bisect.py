"""Finds the first step of a run whose result is further from the source than its precision explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.engine.places import Places
from runner.engine.plan import Plan
from runner.engine.store import Store
from runner.errors import ModelUnavailable, RunFailed, StoreError
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle
from runner.models.source import Access, locate
from runner.passes import table
from runner.recipe.config import InputModel

if TYPE_CHECKING:
    from runner.evaluation.divergence import Difference
    from runner.evaluation.parity import Parity

State = Literal["within", "beyond", "missing", "not compared"]


@dataclass(frozen=True)
class Walked:
    """A step to look at.

    Attributes:
        name: its name in the run.
        pass_name: its pass.
        fingerprint: its key in the store.
    """

    name: str
    pass_name: str
    fingerprint: str | None


@dataclass(frozen=True)
class Trail:
    """The steps of a run, and what they are compared with.

    Attributes:
        source: the model that the run starts from.
        steps: its steps in order, without the one that makes the source.
        target: name of the target.
        again: the command that makes missing results.
    """

    source: ModelHandle
    steps: tuple[Walked, ...]
    target: str
    again: str


@dataclass(frozen=True)
class StepVerdict:
    """How a step's result compares with the source.

    Attributes:
        step: its name.
        pass_name: its pass.
        state: ``within`` or ``beyond`` its tolerance, ``missing`` in the store, or ``not compared``.
        precision: the narrowest numbers that its result computes with.
        tolerance: greatest relative error that is allowed.
        outputs: the outputs' differences, the greatest first.
        reason: why it is missing or was not compared, or what is wrong besides numbers.
    """

    step: str
    pass_name: str
    state: State
    precision: str | None = None
    tolerance: float | None = None
    outputs: tuple[Difference, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain data."""
        return {**asdict(self), "outputs": [one.to_json() for one in self.outputs]}


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        steps: the verdict on every step.
        first: the first step beyond its tolerance; None where there is none.
        before: the step whose graph the tensors were compared with; None where there is none.
        tensors: the first tensors inside that step's graph that differ.
        note: why there are no tensors.
    """

    steps: tuple[StepVerdict, ...]
    first: str | None
    before: str | None = None
    tensors: tuple[Difference, ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the bisection as plain data."""
        return {
            "first": self.first,
            "before": self.before,
            "note": self.note,
            "steps": [one.to_json() for one in self.steps],
            "tensors": [one.to_json() for one in self.tensors],
        }


def trail_of_plan(plan: Plan, store: Store, again: str) -> Trail:
    """Returns the trail of a plan.

    Raises:
        StoreError: the source was never made.
    """
    steps = [Walked(step.name, step.pass_name, step.fingerprint) for step in plan.steps]
    return _trail(steps, plan.source.handle, store, plan.target.name, again)


def trail_of_receipt(receipt: dict[str, Any], store: Store, where: Places) -> Trail:
    """Returns the trail of a finished run, as its receipt tells it.

    Raises:
        ModelUnavailable: the source is not where the receipt says; the run's configuration knows better.
        StoreError: the source was made by the run, and is not in the store any more.
    """
    steps = [Walked(one["step"], one["pass"], one.get("fingerprint")) for one in receipt["steps"]]
    again = f"recipe run {receipt.get('recipe') or ' '.join(receipt.get('config', []))}"
    source = None
    if not steps or steps[0].pass_name not in table.SOURCE_MODULES:
        source = _located(receipt, where)
    return _trail(steps, source, store, str(receipt["target"]), again)


def _trail(steps: Sequence[Walked], source: ModelHandle | None, store: Store, target: str, again: str) -> Trail:
    if steps and steps[0].pass_name in table.SOURCE_MODULES:
        entry = store.get(steps[0].fingerprint or "")
        if entry is None:
            raise StoreError("source-missing", "the source model that the run made is not in the store", f"run again: {again}")
        source, steps = entry.model, steps[1:]
    if source is None:
        raise ModelUnavailable("source-missing", "the source model is not here", f"run again: {again}")
    return Trail(source, tuple(steps), target, again)


def _located(receipt: dict[str, Any], where: Places) -> ModelHandle:
    named = str(receipt["model"]["id"])
    kind: Literal["ONNXModel", "HfModel"] = "ONNXModel" if named.endswith(".onnx") else "HfModel"
    model = InputModel(type=kind, model_path=named, task=receipt.get("task"))
    with DigestMemo(where.digests) as memo:
        access = Access(where.models, memo, offline=True, fetch=False, trust=False, say=lambda _: None)
        try:
            found = locate(model, (), Path.cwd(), access)
        except ModelUnavailable:
            found = None
    if found is None or found.handle is None or found.digest != receipt["model"]["digest"]:
        changed = found is not None and found.handle is not None
        raise ModelUnavailable(
            "source-missing",
            f"the run started from '{named}', which {'is another model now' if changed else 'is not here'}",
            "name the recipe or its configuration instead of the output folder",
        )
    return found.handle


def bisect(trail: Trail, store: Store, threads: int, tolerance: float | None, say: Callable[[str], None]) -> Bisection:
    """Compares the result of every step with the source, on the same inputs, on the CPU.

    Args:
        trail: the run.
        store: where the results of its steps are.
        threads: threads to compute with.
        tolerance: greatest relative error of an output that is allowed; what the step's precision explains by default.
        say: told which step is looked at.
    """
    with ExitStack() as reads:
        for step in trail.steps:
            reads.enter_context(store.reading(step.fingerprint or ""))
        return _compared(trail, store, threads, tolerance, say)


def _compared(trail: Trail, store: Store, threads: int, tolerance: float | None, say: Callable[[str], None]) -> Bisection:
    from runner.evaluation.parity import Parity

    parity = Parity(trail.source, threads, trail.target)
    verdicts: list[StepVerdict] = []
    models: dict[str, ModelHandle] = {}
    for step in trail.steps:
        entry = store.get(step.fingerprint or "")
        if entry is None:
            reason = f"its result is not in the store; {trail.again}"
            verdicts.append(StepVerdict(step.name, step.pass_name, "missing", reason=reason))
            continue
        say(f"{step.name}: {step.pass_name}")
        models[step.name] = entry.model
        verdicts.append(_verdict(step, entry.model, parity, tolerance))
    first = next((one for one in verdicts if one.state == "beyond"), None)
    if first is None:
        return Bisection(tuple(verdicts), None)
    say(f"{first.step}: the first tensors that differ")
    earlier = [step.name for step in trail.steps[: [step.name for step in trail.steps].index(first.step)]]
    before = earlier[-1] if earlier else None
    reference = models.get(before) if before else trail.source
    found = Bisection(tuple(verdicts), first.step, before or "source")
    return _with_tensors(found, models[first.step], reference, parity, first.tolerance or 0.0)


def _verdict(step: Walked, model: ModelHandle, parity: Parity, tolerance: float | None) -> StepVerdict:
    from runner.evaluation.divergence import TOLERANCES, output_differences, precision_of, worst
    from runner.evaluation.probe_inputs import NoProbe

    precision = precision_of(model)
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    verdict = StepVerdict(step.name, step.pass_name, "within", precision, allowed)
    try:
        outputs = tuple(output_differences(*parity.outputs(model)))
    except NoProbe as reason:
        return replace(verdict, state="not compared", reason=str(reason))
    except RunFailed as error:
        return replace(verdict, state="beyond", reason=error.problems[0].cause)
    return replace(verdict, state="beyond" if worst(outputs) > allowed else "within", outputs=outputs)


def _with_tensors(
    found: Bisection, model: ModelHandle, reference: ModelHandle | None, parity: Parity, tolerance: float
) -> Bisection:
    """Adds the first tensors that differ, where both the step and the one before are graphs that run here."""
    from runner.evaluation.divergence import first_differing, graph_of
    from runner.evaluation.probe_inputs import NoProbe

    after, before = graph_of(model), graph_of(reference) if reference else None
    if after is None or before is None:
        told = "the result before it is not in the store" if reference is None else "only one of both sides is an ONNX graph"
        return replace(found, note=f"tensors inside are not compared: {told}")
    try:
        inputs = parity.outputs(model)[0]
        tensors = first_differing(before, after, inputs, tolerance, parity.threads)
    except (NoProbe, RunFailed) as error:
        return replace(found, note=f"tensors inside are not compared: {error}")
    return replace(found, tensors=tensors, note=None if tensors else "no tensor inside differs by more than that")
