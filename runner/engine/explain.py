"""Why a step is found in the store, or what has changed since it was last made."""

from __future__ import annotations

from dataclasses import dataclass

from runner.engine.fingerprint import differences
from runner.engine.plan import Plan, Step
from runner.engine.store import Entry, Store
from runner.models.digest import DigestMemo


@dataclass(frozen=True)
class Explanation:
    """The state of one step.

    Attributes:
        step: its name.
        cached: whether its result is stored.
        reasons: what differs from the most similar stored result of the same pass; empty when cached.
    """

    step: str
    cached: bool
    reasons: tuple[str, ...]


def explain(plan: Plan) -> list[Explanation]:
    """Returns the explanation of every step of a plan, in order."""
    entries = list(Store(plan.places, DigestMemo(plan.places.digests)).entries())
    return [Explanation(step.name, step.cached, () if step.cached else tuple(_reasons(step, entries))) for step in plan.steps]


def _reasons(step: Step, entries: list[Entry]) -> list[str]:
    if step.fingerprint is None:
        return ["the source model has not been fetched, so nothing is known yet"]
    alike = [entry.record["ingredients"] for entry in entries if entry.record["pass"] == step.pass_name]
    if not alike:
        return [f"no result of {step.pass_name} is stored"]
    closest = min((differences(known, step.ingredients) for known in alike), key=len)
    if not closest:
        return ["it was stored, but its files are damaged or --no-cache was given"]
    return [line if not line.startswith("input:") else "its input is another model or step" for line in closest]
