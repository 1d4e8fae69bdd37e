"""What a surgeon is: typed options under Olive's name for it, and an operation on a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.recipe.config import Model

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


@dataclass(frozen=True)
class Outcome:
    """What an operation did to one graph.

    Attributes:
        changes: how many places were changed; 0 where there was nothing to do.
        remark: what a person should know besides, or why nothing was done.
    """

    changes: int
    remark: str | None = None


class NotInGraph(Exception):
    """A surgery names something that this graph does not have; another graph of the model may have it."""

    def __init__(self, what: str, name: str, known: Sequence[str]) -> None:
        self.what = what
        self.name = name
        self.known = tuple(known)
        super().__init__(f"there is no {what} '{name}'")


class CannotOperate(Exception):
    """The graph has what the surgery is about, in a form that it cannot be done to."""

    def __init__(self, rule: str, cause: str, remedy: str | None = None) -> None:
        self.rule = rule
        self.cause = cause
        self.remedy = remedy
        super().__init__(cause)


class WeightsForbid(CannotOperate):
    """It cannot be done for the values or sizes of the weights, of which a tiny twin says nothing."""


class Surgeon(Model):
    """Base of all surgeons. A subclass is named as in Olive, and its docstring is what people read of it.

    Attributes:
        needs_types: run shape inference on the graph first.
    """

    surgeon: str

    needs_types: ClassVar[bool] = False


class IrSurgeon(Surgeon):
    """A surgeon for the graph as linked values and nodes. Weights are read from disk where they are touched."""

    def operate(self, model: ir.Model) -> Outcome:
        """Changes the model in place.

        Raises:
            NotInGraph: the graph lacks what an option names.
            CannotOperate: the operation would give a wrong or invalid graph.
        """
        raise NotImplementedError


class ProtoSurgeon(Surgeon):
    """A surgeon for graphs that are not well-formed, which no linked form can hold."""

    def operate(self, model: onnx.ModelProto) -> Outcome:
        """Changes the model, whose external weights are not loaded, in place.

        Raises:
            CannotOperate: the operation would give a wrong or invalid graph.
        """
        raise NotImplementedError
