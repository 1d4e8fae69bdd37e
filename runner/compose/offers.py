"""What could be made of a model for a target: the precisions there are, the best way to each, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.compose.choices import Choice, Trade, of_kind, of_recipe, ordered
from runner.compose.known import Known
from runner.compose.plain_passes import PRECISIONS, plain_passes
from runner.errors import UsageError
from runner.targets.target import Target
from runner.templating.clone import Clone
from runner.templating.kinds import kind_of

_PLAIN: Mapping[str, str] = {
    "int4": "weights of products in 4 bits", "int8": "8-bit products", "fp16": "half precision", "fp32": "as it is, tidied",
}  # fmt: skip


@dataclass(frozen=True)
class Offers:
    """What could be made.

    Attributes:
        target: for which target.
        choices: the ways of the catalogue, in its order; none where no pipeline serves the model.
        plain: precisions that need no pipeline; none where there are choices.
    """

    target: Target
    choices: Sequence[Choice]
    plain: Sequence[str]

    @property
    def precisions(self) -> Mapping[str, str]:
        """Returns precision to a sentence about it, the usual one first."""
        if not self.choices:
            return {precision: _PLAIN[precision] for precision in self.plain}
        told: dict[str, str] = {}
        for choice in self.choices:
            told.setdefault(choice.precision, _about(choice))
        return told

    def best(self, precision: str | None, trade: Trade | None) -> Choice | None:
        """Returns the way that would be taken; None where no pipeline serves the model.

        Raises:
            UsageError: nothing makes that precision.
        """
        if not self.choices:
            if precision is not None and precision not in self.plain:
                raise UsageError(
                    "unknown-precision", f"nothing makes {precision} of this model on {self.target.name}",
                    f"there are: {', '.join(self.plain)}",
                )  # fmt: skip
            return None
        return ordered(self.choices, precision, trade, self.target)[0]


def _about(choice: Choice) -> str:
    if choice.measured is not None:
        return f"{choice.why_measured()}, measured on another machine"
    gates = ", ".join(f"{metric} {bar}" for metric, bar in choice.variant.gates.items())
    return f"must reach {gates}" if gates else f"pipeline {choice.variant.pipeline}"


def offers(known: Known, target: Target, clone: Clone) -> Offers:
    """Returns what could be made of a model.

    Args:
        known: the model.
        target: what it would be made for.
        clone: where the pipelines are.
    """
    entry, task = known.entry, known.subject.task
    if entry is not None and task == entry.info.model.task:
        choices = of_recipe(entry, kind_of(entry.info.model.task, entry.info.arch), target, clone)
    else:
        kind = known.kind
        choices = of_kind(kind, str(task), known.architecture, target, clone) if kind else []
    return Offers(target, choices, () if choices else [one for one in PRECISIONS if _makes(known, one, target)])


def _makes(known: Known, precision: str, target: Target) -> bool:
    try:
        plain_passes(known.subject, known.architecture or None, precision, target)
    except UsageError:
        return False
    return True
