"""Graphs inside graphs: the bodies of If, Loop and Scan, and which value a name means in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yields the graphs that a node runs: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_below(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yields a graph and those in the bodies of its nodes, outer before inner."""
    yield graph
    for node in graph.node:
        for inner in bodies(node):
            yield from graphs_below(inner)


@dataclass(frozen=True)
class Scope:
    """A graph, the constants in it and the nodes that made the other values, by the values' names."""

    graph: onnx.GraphProto
    constants: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Scope:
        """Returns the scope of one graph; the constants are its initializers and what Constant nodes hold as tensors."""
        constants = {tensor.name: tensor for tensor in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                constants[node.output[0]] = node.attribute[0].t
        return cls(graph, constants, makers)


def constant(name: str, scopes: Sequence[Scope]) -> tuple[onnx.TensorProto, onnx.GraphProto] | None:
    """Returns the constant that a name means and the graph that it belongs to; None where it is computed or an input.

    Args:
        name: of a value.
        scopes: those around the node that reads it, outermost first.
    """
    for scope in reversed(scopes):
        if name in scope.constants:
            return scope.constants[name], scope.graph
        if name in scope.makers:
            return None
    return None


def maker(name: str, scopes: Sequence[Scope]) -> onnx.NodeProto | None:
    """Returns the node that computes a value, None for constants kept as initializers and inputs."""
    return next((scope.makers[name] for scope in reversed(scopes) if name in scope.makers), None)


def drop_unread(graph: onnx.GraphProto, candidates: set[str]) -> None:
    """Drops, of the values of these names, those that nothing reads any more, and then what only they were made from.

    Args:
        graph: the outermost graph.
        candidates: names of constants, or of what is computed from constants alone.
    """
    graphs = list(graphs_below(graph))
    while candidates:
        read = {name for one in graphs for node in one.node for name in node.input}
        read |= {output.name for one in graphs for output in one.output}
        dead = candidates - read
        candidates = set()
        for one in graphs:
            for node in [node for node in one.node if node.output and dead.issuperset(node.output)]:
                candidates |= set(node.input)
                one.node.remove(node)
            for values in (one.initializer, one.input, one.value_info):
                for value in [value for value in values if value.name in dead]:
                    values.remove(value)
