"""Joins the graphs of a split model into one again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.components import ATTRIBUTE, MANIFEST, Manifest, component_names, read_manifest
from runner.models.files import carry, external_files, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx


class ComposeOnnxModelsOptions(ExternalDataOptions):
    """Options of ComposeOnnxModels."""


def compose(model: ModelHandle, options: ComposeOnnxModelsOptions, context: PassContext) -> ModelHandle:
    """Writes `model.onnx`, in which every graph's inputs come from those before it; the other files go along.

    Raises:
        InvalidRecipe: the model is a single graph.
        RunFailed: the graphs do not go together.
    """
    names = component_names(model)
    if not names:
        raise InvalidRecipe(
            Problem("not-split", "ComposeOnnxModels: the model is one graph already", remedy="put SplitModel before it")
        )
    joined = join([read_graph(model.folder / name) for name in names], read_manifest(model))
    weights = {file for name in names for file in external_files(model.folder / name)}
    write_graph(joined, context.output / "model.onnx", options.external_data())
    carry(model, context.output, exclude={*names, *weights, MANIFEST}, graph=True)
    context.say(f"{len(names)} graphs joined: {len(joined.graph.node)} nodes")
    kept = {key: value for key, value in model.attributes.items() if key != ATTRIBUTE}
    return ModelHandle("onnx", context.output, "model.onnx", model.task, kept)


def join(parts: Sequence[onnx.ModelProto], manifest: Manifest) -> onnx.ModelProto:
    """Returns one graph of several, in which what one puts out under a name is what the next reads under it.

    Weights and nodes that parts share stand in it once; other things that two parts call by one name get names of their own.

    Raises:
        RunFailed: two parts put out different things under one name, or one reads what none gives.
    """
    import onnx

    joined = onnx.ModelProto()
    joined.CopyFrom(parts[0])
    graph = joined.graph
    for field in ("node", "initializer", "input", "output", "value_info"):
        graph.ClearField(field)
    versions: dict[str, int] = {}
    taken = _Taken()
    described = {value.name: value for part in parts for value in (*part.graph.input, *part.graph.output)}
    given = {value.name for part in parts for value in part.graph.output} | set(manifest.inputs)
    for number, part in enumerate(parts):
        weights = {tensor.name for tensor in part.graph.initializer}
        for value in part.graph.input:
            if value.name not in given and value.name not in weights:
                raise RunFailed("parts-disagree", f"nothing gives the input '{value.name}' of one of the graphs")
        taken.add(part.graph, number, graph)
        for entry in part.opset_import:
            versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
    graph.input.extend(described[name] for name in manifest.inputs if name in described)
    graph.output.extend(described[name] for name in manifest.outputs)
    joined.ClearField("opset_import")
    joined.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return joined


class _Taken:
    """What the joined graph calls by which name."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._nodes: set[str] = set()

    def add(self, part: onnx.GraphProto, number: int, joined: onnx.GraphProto) -> None:
        """Adds the weights and nodes of a part that are not in the joined graph yet.

        Raises:
            RunFailed: an output of the part is called as something else already.
        """
        names = self._new_names(part, number)
        for tensor in part.initializer:
            if self._is_new(names.get(tensor.name, tensor.name), _content(tensor)):
                joined.initializer.add().CopyFrom(tensor)
                joined.initializer[-1].name = names.get(tensor.name, tensor.name)
        for node in part.node:
            copy = _renamed(node, names)
            if self._is_new(_key(copy), _content(copy)):
                while copy.name and copy.name in self._nodes:
                    copy.name = f"{copy.name}_{number}"
                self._nodes.add(copy.name)
                joined.node.append(copy)

    def _new_names(self, part: onnx.GraphProto, number: int) -> dict[str, str]:
        """Returns name to new name of what the joined graph has another thing for."""
        put_out = {value.name for value in part.output}
        names = {one.name: f"{one.name}_{number}" for one in part.initializer if self._differs(one.name, _content(one))}
        before = -1
        while before < len(names):  # a node that reads a renamed thing is another one as well
            before = len(names)
            for node in part.node:
                copy = _renamed(node, names)
                if not self._differs(_key(copy), _content(copy)):
                    continue
                if put_out & set(node.output):
                    raise RunFailed("parts-disagree", f"two of the graphs put out '{node.output[0]}', and they differ")
                names.update({output: f"{output}_{number}" for output in node.output if output})
        return names

    def _differs(self, name: str, content: bytes) -> bool:
        return self._contents.get(name, content) != content

    def _is_new(self, name: str, content: bytes) -> bool:
        is_new = name not in self._contents
        self._contents[name] = content
        return is_new


def _key(node: onnx.NodeProto) -> str:
    return next(str(output) for output in node.output if output)


def _content(part: onnx.NodeProto | onnx.TensorProto) -> bytes:
    """Returns a digest of what something is; how a node is called makes no difference."""
    import onnx

    if isinstance(part, onnx.NodeProto):
        unnamed = onnx.NodeProto()
        unnamed.CopyFrom(part)
        unnamed.ClearField("name")
        unnamed.ClearField("doc_string")
        part = unnamed
    return hashlib.sha256(part.SerializeToString(deterministic=True)).digest()


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Returns a copy that reads and writes by new names, in the graphs of its attributes as well."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            nodes = [_renamed(below, names) for below in inner.node]
            inner.ClearField("node")
            inner.node.extend(nodes)
    return copy


PASS = Pass(
    name="ComposeOnnxModels",
    summary="Joins the graphs of a split model into one again.",
    options=ComposeOnnxModelsOptions,
    apply=compose,
    takes=("onnx",),
    gives="onnx",
    packages=("onnx",),
)
