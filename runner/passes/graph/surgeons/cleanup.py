"""Surgeons that mend what graph optimisers leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from runner.passes.graph.surgeons.surgeon import CannotOperate, IrSurgeon, Outcome, ProtoSurgeon

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


class RemoveMemcpy(IrSurgeon):
    """Takes out copies between device and host that ONNX Runtime wrote into an optimised graph; it places them itself."""

    surgeon: Literal["RemoveMemcpy"]

    def operate(self, model: ir.Model) -> Outcome:
        """Lets readers of a copy read what was copied, in subgraphs as well."""
        from runner.passes.graph.surgeons.editing import bypass, nodes_of

        copies = nodes_of(model, "MemcpyToHost", "MemcpyFromHost")
        for node in copies:
            source = node.inputs[0]
            if source is None:
                raise CannotOperate("ill-formed-graph", f"{node.op_type} '{node.name}' copies nothing")
            bypass(node.outputs[0], source)
        return Outcome(len(copies))


class DeduplicateNodes(ProtoSurgeon):
    """Takes out nodes that make a tensor which an earlier node of the graph makes in the same way."""

    surgeon: Literal["DeduplicateNodes"]

    def operate(self, model: onnx.ModelProto) -> Outcome:
        """Keeps the first of equal nodes, in the graph and in each subgraph.

        Raises:
            CannotOperate: two different nodes make the same tensor: which one is meant cannot be known.
        """
        return Outcome(sum(_drop_repeated_nodes(graph) for graph in _graphs(model.graph)))


class DeduplicateSubgraphInitializers(ProtoSurgeon):
    """Takes out weights that stand twice under one name in the body of a Loop, If or Scan."""

    surgeon: Literal["DeduplicateSubgraphInitializers"]

    def operate(self, model: onnx.ModelProto) -> Outcome:
        """Keeps the first of equal weights in each subgraph.

        Raises:
            CannotOperate: two different weights have the same name.
        """
        bodies = [graph for graph in _graphs(model.graph) if graph is not model.graph]
        return Outcome(sum(_drop_repeated_weights(graph) for graph in bodies))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for body in [*inner, *attribute.graphs]:
                yield from _graphs(body)


def _drop_repeated_nodes(graph: onnx.GraphProto) -> int:
    made: dict[str, onnx.NodeProto] = {}
    repeated = []
    for at, node in enumerate(graph.node):
        first = next((made[name] for name in node.output if name in made), None)
        if first is None:
            made.update({name: node for name in node.output if name})
        elif _without_name(first) == _without_name(node):
            repeated.append(at)
        else:
            raise CannotOperate(
                "ambiguous-tensor",
                f"{first.op_type} '{first.name}' and {node.op_type} '{node.name}' differ, and both make '{node.output[0]}'",
                "make the graph again: which of the two is meant cannot be known",
            )
    for at in reversed(repeated):
        del graph.node[at]
    return len(repeated)


def _without_name(node: onnx.NodeProto) -> bytes:
    import onnx

    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    for field in ("name", "doc_string", "metadata_props"):
        bare.ClearField(field)
    del bare.attribute[:]
    bare.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    return bytes(bare.SerializeToString(deterministic=True))


def _drop_repeated_weights(graph: onnx.GraphProto) -> int:
    first: dict[str, onnx.TensorProto] = {}
    repeated = []
    for at, tensor in enumerate(graph.initializer):
        kept = first.setdefault(tensor.name, tensor)
        if kept is tensor:
            continue
        if not _same_content(kept, tensor):
            raise CannotOperate(
                "ambiguous-tensor",
                f"two different weights of subgraph '{graph.name}' are called '{tensor.name}'",
                "make the graph again: which of the two is meant cannot be known",
            )
        repeated.append(at)
    for at in reversed(repeated):
        del graph.initializer[at]
    return len(repeated)


def _same_content(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    from onnx.external_data_helper import uses_external_data
    from onnx.numpy_helper import to_array

    if uses_external_data(one) or uses_external_data(other):
        return list(one.external_data) == list(other.external_data)
    left, right = to_array(one), to_array(other)
    return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())
