"""Why a step is found in the store, or what has changed since it was last made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.engine.fingerprint import differences, fingerprint
from runner.engine.parts import part_ingredients
from runner.engine.plan import Plan
from runner.engine.store import Entry, Store
from runner.errors import ModelUnavailable
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.each_component import is_taken_apart, parts_for


@dataclass(frozen=True)
class Explanation:
    """The state of one step, or of one component in it.

    Attributes:
        name: of the step, or of the component.
        cached: whether its result is stored.
        reasons: what differs from the most similar stored result of the same pass; empty when cached.
        components: those of a step that is not stored, as far as they can be told: its input has to be there.
        left: a component that the step leaves as it is, for which there is nothing to store.
        needed: see `runner.engine.plan.Step`.
    """

    name: str
    cached: bool
    reasons: tuple[str, ...]
    components: tuple[Explanation, ...] = ()
    left: bool = False
    needed: bool = True

    @property
    def state(self) -> str:
        """Returns it in a word or two."""
        return "left as it is" if self.left else "cached" if self.cached else "to do" if self.needed else "not needed"


def explain(plan: Plan) -> list[Explanation]:
    """Returns the explanation of every step of a plan, in order."""
    store = Store(plan.places, DigestMemo(plan.places.digests))
    entries = list(store.entries())
    model = plan.source.handle
    told = []
    for step in plan.steps:
        if step.fingerprint is None:
            told.append(Explanation(step.name, False, ("the source model has not been fetched, so nothing is known yet",)))
            continue
        alike = [one for one in entries if one.record["pass"] == step.pass_name and "component" not in one.record]
        to_do = step.state == "to do"
        reasons = _reasons(step.pass_name, step.ingredients, alike) if to_do else ()
        components = _components(plan, step.name, model, store, entries) if to_do and model is not None else ()
        told.append(Explanation(step.name, step.cached, reasons, components, needed=step.needed))
        entry = store.get(step.fingerprint)
        model = entry.model if entry else None
    return told


def _components(plan: Plan, name: str, model: ModelHandle, store: Store, entries: list[Entry]) -> tuple[Explanation, ...]:
    """Returns the explanations of the components of a step; none where its model is one."""
    step = next(one for one in plan.steps if one.name == name)
    pass_ = table.get(step.pass_name)
    if not is_taken_apart(pass_, model):
        return ()
    told = []
    for part in parts_for(pass_, model, pass_.options.model_validate(step.options), step.components):
        if part.options is None:
            told.append(Explanation(part.name, True, (), left=True))
            continue
        try:
            ingredients = part_ingredients(pass_, part, step, plan.target, store.memo)
        except ModelUnavailable as error:
            told.append(Explanation(part.name, False, tuple(problem.cause for problem in error.problems)))
            continue
        cached = not plan.request.no_cache and store.get(fingerprint(ingredients)) is not None
        alike = [one for one in entries if one.record["pass"] == step.pass_name and one.record.get("component") == part.name]
        told.append(Explanation(part.name, cached, () if cached else _reasons(step.pass_name, ingredients, alike)))
    return tuple(told)


def _reasons(pass_name: str, ingredients: Mapping[str, Any], alike: list[Entry]) -> tuple[str, ...]:
    if not alike:
        return (f"no result of {pass_name} is stored",)
    closest = min((differences(entry.record["ingredients"], ingredients) for entry in alike), key=len)
    if not closest:
        return ("it was stored, but its files are damaged or --no-cache was given",)
    return tuple(line if not line.startswith("input:") else "its input is another model or step" for line in closest)
