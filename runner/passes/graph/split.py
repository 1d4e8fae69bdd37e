"""Cuts an ONNX graph into several that run one after the other, along the modules that its nodes come from.

A node goes where its module is assigned, or where its inputs come from; never before them. Nodes that belong to no module go
to the first that reads them. Constants and DequantizeLinear go along with every reader, so that what passes from one graph to
the next is what the model computes, and quantised tensors pass as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.components import ATTRIBUTE, Manifest, component_names
from runner.models.files import carry, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ASSIGNMENTS = "split_assignments"  # attribute of a handle, and entry in a graph's metadata
_WITH_READERS = ("Constant", "DequantizeLinear")


def parse_assignments(text: str) -> dict[str, int]:
    """Returns module name to number of the part, from ``model.layers.0=0;model.layers.1=1``.

    Raises:
        ValueError: it is written otherwise.
    """
    pairs = [pair.rpartition("=") for pair in text.split(";") if pair]
    if any(not name or not number.isdigit() for name, _, number in pairs):
        raise ValueError(f"'{text}' is not of the form module=0;other.module=1")
    return {name: int(number) for name, _, number in pairs}


class SplitModelOptions(ExternalDataOptions):
    """Options of SplitModel."""

    split_assignments: dict[str, int] | None = Field(
        None, description="module name to number of its part, also as name=0;other=1; what CaptureSplitInfo found by default"
    )

    @field_validator(ASSIGNMENTS, mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return parse_assignments(given) if isinstance(given, str) else given


def split(model: ModelHandle, options: SplitModelOptions, context: PassContext) -> ModelHandle:
    """Writes ``split_0.onnx`` … and what they make together; the other files go along.

    Raises:
        InvalidRecipe: nothing says which module goes where, none of the graph's nodes is of such a module, or the model is
            split already.
    """
    if component_names(model):
        raise InvalidRecipe(Problem("split-already", "the model is split already", remedy="put ComposeOnnxModels before it"))
    proto = read_graph(model.path)
    assignments = options.split_assignments or model.attributes.get(ASSIGNMENTS) or _noted(proto)
    if not assignments:
        raise InvalidRecipe(
            Problem(
                "no-split-assignments",
                "SplitModel: nothing says which module goes into which part",
                remedy="put CaptureSplitInfo before OnnxConversion, or set split_assignments",
            )
        )
    parts = cut(proto, assignments)
    names = tuple(f"split_{number}.onnx" for number in range(len(parts)))
    for name, part in zip(names, parts, strict=True):
        write_graph(part, context.output / name, options.external_data())
    carry(model, context.output)
    graph = proto.graph
    defaults = {tensor.name for tensor in graph.initializer}
    inputs = tuple(value.name for value in graph.input if value.name not in defaults)
    Manifest(names, inputs, tuple(value.name for value in graph.output)).write(context.output)
    context.say(f"{len(parts)} graphs of {', '.join(str(len(part.graph.node)) for part in parts)} nodes")
    kept = {key: value for key, value in model.attributes.items() if key != ASSIGNMENTS}
    return ModelHandle("onnx", context.output, names[0], model.task, {**kept, ATTRIBUTE: list(names)})


def _noted(proto: onnx.ModelProto) -> dict[str, int]:
    noted = next((entry.value for entry in proto.metadata_props if entry.key == ASSIGNMENTS), "")
    return parse_assignments(noted)


def cut(proto: onnx.ModelProto, assignments: Mapping[str, int]) -> list[onnx.ModelProto]:
    """Returns the graphs, in the order in which they run; a part without nodes is left out.

    Args:
        proto: the graph with its weights.
        assignments: module name to number of its part.

    Raises:
        InvalidRecipe: no node belongs to a module that is assigned.
        RunFailed: the type of a tensor that passes from one part to the next is not known.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    graph = ir.serde.deserialize_model(_with_types(proto))
    passes.TopologicalSortPass()(graph)
    parts = _parts(graph.graph, assignments)
    made = []
    for number in sorted(set(parts.values())):
        inputs, outputs = _boundary(graph.graph, parts, number)
        part = ir.convenience.extract(graph.graph, inputs, outputs)
        for value in (*part.inputs, *part.outputs):
            if value.dtype is None:
                raise RunFailed("unknown-type", f"the type of '{value.name}', which passes between two parts, is not known")
        made.append(_proto_of(ir.Model(part, ir_version=graph.ir_version, functions=tuple(graph.functions.values()))))
    return made


def _proto_of(model: ir.Model) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.serde.serialize_model(model)


def _with_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with the types of all tensors, as far as ONNX can infer them from their operators."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    model = ir.serde.deserialize_model(proto)
    passes.ShapeInferencePass()(model)
    return ir.serde.serialize_model(model)


def _parts(graph: ir.Graph, assignments: Mapping[str, int]) -> dict[ir.Node, int]:
    """Returns the part of every node but those that go along with their readers."""
    nodes = [node for node in graph if not _goes_along(node)]
    parts: dict[ir.Node, int] = {}
    matched = 0
    for node in nodes:
        own = None if node.op_type == "QuantizeLinear" else _assigned(node.name or "", assignments)
        matched += own is not None
        above = [parts[one] for one in _sources(node) if one in parts]
        known = [*above, *([] if own is None else [own])]
        if known:
            parts[node] = max(known)
    if not matched:
        raise InvalidRecipe(
            Problem(
                "no-split-assignments",
                f"SplitModel: no node of the graph belongs to a module such as '{next(iter(assignments))}'",
                remedy="split before the passes that rename nodes, or name modules of this graph in split_assignments",
            )
        )
    for node in reversed(nodes):
        if node not in parts:
            below = [parts[one] for one in _readers(node) if one in parts]
            parts[node] = min(below, default=0)
    return parts


def _assigned(name: str, assignments: Mapping[str, int]) -> int | None:
    """Returns the part of the innermost assigned module in a node's name, /model/layers.0/mlp/MatMul.

    The exporter's own wrapper around a model may stand before the module's name.
    """
    whole = [part for part in name.replace("/", ".").split(".") if part]
    for steps in (whole, whole[1:]):
        for length in range(len(steps), 0, -1):
            found = assignments.get(".".join(steps[:length]))
            if found is not None:
                return found
    return None


def _goes_along(node: ir.Node) -> bool:
    """Says whether a node stands in every part that reads it: it computes nothing, and its output is not the model's."""
    return node.op_type in _WITH_READERS and not any(value.is_graph_output() for value in node.outputs)


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yields what a node reads, the graphs in its attributes included."""
    import onnx_ir as ir

    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        graphs = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}.get(attribute.type, ())
        for inner in graphs:
            for below in inner:
                yield from _read_by(below)


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the nodes whose outputs a node reads, through those that go along with their readers."""
    for value in _read_by(node):
        above = value.producer()
        if above is not None and _goes_along(above):
            yield from _sources(above)
        elif above is not None:
            yield above


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        yield from _readers_of(value)


def _boundary(graph: ir.Graph, parts: Mapping[ir.Node, int], number: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """Returns the inputs and outputs of one part: the model's own, and what passes from and to other parts."""
    inputs: dict[ir.Value, None] = {}
    outputs: dict[ir.Value, None] = {}

    def read(value: ir.Value) -> None:
        above = value.producer()
        if above is None:
            if value in graph.inputs:
                inputs[value] = None
        elif _goes_along(above):
            for further in _read_by(above):
                read(further)
        elif above in parts and parts[above] != number:
            inputs[value] = None

    for node, part in parts.items():
        if part == number:
            for value in _read_by(node):
                read(value)
        for value in node.outputs:
            crosses = any(parts.get(one, part) != part for one in _readers_of(value))
            if part == number and (value.is_graph_output() or crosses):
                outputs[value] = None
    return list(inputs), list(outputs)


def _readers_of(value: ir.Value) -> Iterator[ir.Node]:
    for use in value.uses():
        if _goes_along(use.node):
            yield from _readers(use.node)
        else:
            yield use.node


PASS = Pass(
    name="SplitModel",
    summary="Cuts an ONNX graph into several that run one after the other, along the modules it was exported from.",
    options=SplitModelOptions,
    apply=split,
    takes=("onnx",),
    gives="onnx",
    packages=("onnx-ir", "onnx"),
)
