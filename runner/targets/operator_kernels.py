"""For which operators an execution provider has kernels, and which models its pinned runtime loads: facts, read from tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("operator_kernels.json")
ONNX_DOMAIN = "ai.onnx"


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        first: the operator's version that it is for.
        last: the last version that it serves as well; None where it serves the first only.
        types: for a type variable or parameter of the operator's schema, the element types (``float16``) that it takes.
    """

    first: int
    last: int | None
    types: Mapping[str, frozenset[str]]

    def covers(self, since: int) -> bool:
        """Says whether it is for the operator as version `since` defines it.

        ONNX Runtime takes a kernel without a last version for no later definition of its operator.
        """
        return self.first == since or (self.last is not None and self.first < since <= self.last)

    def takes(self, types: Mapping[str, Set[str]]) -> bool:
        """Says whether it takes a node's element types, by type variable and parameter; what is unknown fits."""
        return all(types.get(name, frozenset()) <= allowed for name, allowed in self.types.items())


@dataclass(frozen=True)
class ProviderKernels:
    """The kernels of one provider.

    Attributes:
        version: version or commit of ONNX Runtime that they are of.
        operators: kernels by domain (``ai.onnx`` for ONNX's own) and operator.
    """

    version: str
    operators: Mapping[tuple[str, str], tuple[Kernel, ...]]

    def of(self, domain: str, operator: str) -> tuple[Kernel, ...]:
        """Returns the kernels of an operator, in any version and for any types."""
        return self.operators.get((domain or ONNX_DOMAIN, operator), ())

    def serve(self, domain: str, operator: str, since: int, types: Mapping[str, Set[str]]) -> bool:
        """Says whether there is a kernel for an operator as version `since` defines it, with these element types."""
        return any(kernel.covers(since) and kernel.takes(types) for kernel in self.of(domain, operator))


@dataclass(frozen=True)
class Loadable:
    """The highest versions of ONNX that the runtime of a target takes.

    Attributes:
        runtime: version of ONNX Runtime, as the target's constraints pin it.
        opset: of the domain ``ai.onnx``; ONNX Runtime refuses those that were under development when it was released.
        ir: of the file format.
    """

    runtime: str
    opset: int
    ir: int


# Source: onnxruntime's wheels of these versions for Linux, given a graph of one Add in every opset and IR version.
_LOADABLE: Mapping[str, Loadable] = {
    "CUDAExecutionProvider": Loadable("1.31.1", 26, 13),
    "DmlExecutionProvider": Loadable("1.24.4", 25, 13),
}


def loadable_by(provider: str) -> Loadable:
    """Returns the highest versions of ONNX that the runtime pinned for an execution provider takes.

    Raises:
        KeyError: nothing is known of the provider.
    """
    return _LOADABLE[provider]


@cache
def kernels_of(provider: str) -> ProviderKernels:
    """Returns the kernels of an execution provider.

    Raises:
        KeyError: the table does not know the provider.
    """
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    types = [frozenset(listed.split()) for listed in table["types"]]
    told = table["providers"][provider]
    operators = {
        (domain, operator): tuple(
            Kernel(first, last, {name: types[at] for name, at in constraints.items()}) for first, last, constraints in kernels
        )
        for domain, by_name in told["operators"].items()
        for operator, kernels in by_name.items()
    }
    return ProviderKernels(told["onnxruntime"], operators)


def table_digest() -> str:
    """Returns the sha256 of the table."""
    return hashlib.sha256(_TABLE.read_bytes()).hexdigest()
