"""Small steps of graph surgery: find values, put new nodes in place of a value, take out what nothing reads any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MICROSOFT = "com.microsoft"
Array = np.ndarray[Any, Any]


def nodes_of(model: ir.Model, *op_types: str, domain: str | None = None) -> list[ir.Node]:
    """Returns the nodes of these operators, subgraphs included, in graph order; of any domain when none is given."""
    return [node for node in model.graph.all_nodes() if node.op_type in op_types and domain in (None, node.domain)]


def constant_of(value: ir.Value | None) -> Array | None:
    """Returns the constant that an initializer or a Constant node holds; None for anything else, such as a graph input."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_weight(value: ir.Value | None) -> bool:
    """Says whether a value is an initializer with a fixed content."""
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def sole_consumer(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Returns the one node that reads the value, where it is of these operators and the value is no output of the graph."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type not in op_types:
        return None
    return uses[0].node


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Returns the node that makes the value, where it is of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Returns what a node of two inputs reads beside `value`, which may be the same value once more."""
    first, second = node.inputs
    return second if first is value else first


def numpy_type(value: ir.Value) -> Any:
    """Returns the value's numpy element type; float32 where the graph does not tell."""
    return value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)


class Rewrite:
    """Builds nodes in place of a value: they stand before its producer and are named after it."""

    def __init__(self, old: ir.Value) -> None:
        node = old.producer()
        if node is None or not isinstance(node.graph, ir.Graph):
            raise ValueError(f"{old.name} is not made by a node of a graph")
        self.old, self.before, self.graph, self.made = old, node, node.graph, 0

    def _name(self, label: str) -> str:
        self.made += 1
        return f"{self.old.name}/{label}_{self.made}"

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Adds a node of one output; returns that."""
        name = self._name(op_type)
        value = ir.Value(name=f"{name}/output")
        self.graph.insert_before(
            self.before, ir.node(op_type, list(inputs), attributes, domain=domain, name=name, outputs=[value])
        )
        return value

    def constant(self, content: ArrayLike, dtype: Any = None, label: str = "constant") -> ir.Value:
        """Adds an initializer."""
        return add_weight(self.graph, self._name(label), np.asarray(content, dtype))

    def integers(self, *content: int) -> ir.Value:
        """Adds a one-dimensional int64 initializer, such as a shape or axes."""
        return self.constant(content, np.int64)

    def finish(self, new: ir.Value) -> None:
        """Gives all readers of the old value, the graph's outputs among them, the new one under the old name."""
        new.shape, new.type = self.old.shape or new.shape, self.old.type or new.type
        new.name, self.old.name = self.old.name, self._name("replaced")
        self.old.replace_all_uses_with(new, replace_graph_outputs=True)
        prune(self.before)


def add_weight(graph: ir.Graph, name: str, content: NDArray[Any]) -> ir.Value:
    """Registers an initializer under that name, or the name with a number where it is taken; returns its value."""
    taken, number = name, 0
    while taken in graph.initializers:
        number += 1
        taken = f"{name}_{number}"
    tensor = ir.tensor(np.asarray(content, order="C"), name=taken)
    value = ir.Value(name=taken, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def bypass(old: ir.Value, source: ir.Value) -> None:
    """Lets everything that reads `old` read `source`, which is a value already there, and takes the nodes between out."""
    node = old.producer()
    if node is None or node.graph is None:
        raise ValueError(f"{old.name} is not made by a node of a graph")
    if old.is_graph_output():
        rename = source.producer() is not None and not source.is_graph_output() and source.producer().graph is node.graph
        if not rename:
            rewrite = Rewrite(old)
            rewrite.finish(rewrite.op("Identity", source))
            return
        source.name = old.name
    old.replace_all_uses_with(source, replace_graph_outputs=True)
    prune(node)


def prune(node: ir.Node | None) -> None:
    """Takes a node out that nothing reads, then what only it read: nodes and initializers."""
    waiting = [node]
    while waiting:
        unread = waiting.pop()
        if unread is None or unread.graph is None or any(out.uses() or out.is_graph_output() for out in unread.outputs):
            continue
        read = [value for value in _read_by(unread) if value is not None]
        for inner in _subgraph_nodes(unread):
            for at in range(len(inner.inputs)):
                inner.replace_input_with(at, None)
        unread.graph.remove(unread, safe=True)
        for value in read:
            if value.is_initializer():
                drop_if_unread(value)
            else:
                waiting.append(value.producer())


def drop_if_unread(value: ir.Value) -> None:
    """Takes an initializer out that nothing reads."""
    graph = value.graph
    if graph is not None and not value.uses() and not value.is_graph_output() and not value.is_graph_input() and value.name:
        graph.initializers.pop(value.name, None)


def _read_by(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from dict.fromkeys(node.inputs)
    inner = list(_subgraph_nodes(node))
    for one in inner:
        yield from (value for value in one.inputs if value is not None and value.producer() not in inner)


def _subgraph_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()
