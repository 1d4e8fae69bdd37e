"""Small operations on ONNX graphs, one after the other: Olive's surgeons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.errors import InvalidRecipe, Problem, RunFailed, did_you_mean
from runner.models.files import (
    LARGE,
    ExternalData,
    carry,
    external_files,
    graph_files,
    graphs_of,
    link,
    read_graph,
    write_graph,
)
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.surgeons.surgeon import CannotOperate, IrSurgeon, NotInGraph, Outcome, ProtoSurgeon, WeightsForbid
from runner.passes.graph.surgeons.table import Surgery

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


class GraphSurgeriesOptions(ExternalDataOptions):
    """Options of GraphSurgeries."""

    surgeries: list[Surgery] = Field(min_length=1, description="the surgeries in order, each a surgeon with its options")
    remove_duplicate_initializers: bool = Field(
        True, description="store equal weights once where surgeries have changed weights"
    )


class LazyGraph:
    """One graph of a model in the form that the next surgeon works on; weights stay on disk until somebody reads them.

    While it is linked, weight files are named by their whole path: inside a folder that it knows, onnx-ir refuses files with
    several hard links, as the store's have.

    Raises:
        ModelUnavailable: the graph cannot be read, or its weights are not in its folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        graph_files(folder / name)
        self.folder, self.name = folder, name
        self.proto: onnx.ModelProto | None = read_graph(folder / name, weights=False)
        self._linked: ir.Model | None = None

    def as_proto(self) -> onnx.ModelProto:
        """Returns the graph as messages."""
        import onnx_ir as ir

        if self.proto is None:
            self.proto, self._linked = ir.to_proto(self.linked()), None
            _locate(self.proto, lambda path: Path(path).relative_to(self.folder).as_posix())
        return self.proto

    def linked(self) -> ir.Model:
        """Returns the graph as linked values and nodes.

        Raises:
            RunFailed: it is not well-formed.
        """
        import onnx_ir as ir

        if self._linked is None:
            proto = self.as_proto()
            _locate(proto, lambda name: str(self.folder / name))
            try:
                self._linked = ir.from_proto(proto)
            except ir.serde.SerdeError as error:
                raise RunFailed(
                    "ill-formed-graph", f"{self.name} is no well-formed graph: {_root(error)}", "put DeduplicateNodes first"
                ) from error
            _hold_attributes(self._linked)
            self.proto = None
        return self._linked


def _hold_attributes(model: ir.Model) -> None:
    """Reads tensors of node attributes that are stored outside the graph: onnx-ir writes those of initializers only."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(
                    name, ir.tensor(attribute.value.numpy().copy(), name=attribute.value.name)
                )


def _locate(model: onnx.ModelProto, name: Callable[[str], str]) -> None:
    """Names the files of external weights anew."""
    from onnx.external_data_helper import _get_all_tensors

    for tensor in _get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name(entry.value)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def operate(model: ModelHandle, options: GraphSurgeriesOptions, context: PassContext) -> ModelHandle:
    """Applies the surgeries to every graph of a model.

    Raises:
        InvalidRecipe: a surgery names something that no graph has.
        RunFailed: an operation would give a wrong or invalid graph.
    """
    graphs = [LazyGraph(model.folder, name) for name in graphs_of(model)]
    before = {graph.name: _interface(graph.as_proto()) for graph in graphs}
    for surgery in options.surgeries:
        _operate_on_all(surgery, graphs, model, context)
    _check_described(model, graphs, before)
    _write(model, graphs, options, context)
    return ModelHandle(model.kind, context.output, model.file, model.task, model.attributes)


def _operate_on_all(surgery: Any, graphs: Sequence[LazyGraph], model: ModelHandle, context: PassContext) -> None:
    """Has one surgeon operate on every graph, and says what it did."""
    missed: list[NotInGraph] = []
    done: list[str] = []
    for graph in graphs:
        where = f"{graph.name}: " if len(graphs) > 1 else ""
        try:
            outcome = _operate(surgery, graph)
        except NotInGraph as error:
            missed.append(error)
            continue
        except CannotOperate as error:
            if "twin_of" not in model.attributes or not isinstance(error, WeightsForbid):
                raise RunFailed(error.rule, f"{surgery.surgeon}: {where}{error.cause}", error.remedy) from error
            outcome = Outcome(0, f"{error.cause} (which says nothing of the real model)")
        done.append(f"{where}{_told(outcome)}")
    if not done:
        raise InvalidRecipe(*_missing(surgery.surgeon, missed))
    context.say(f"{surgery.surgeon}: {'; '.join(done)}")


def _operate(surgery: Any, graph: LazyGraph) -> Outcome:
    from runner.passes.graph.surgeons.io import infer_shapes

    if isinstance(surgery, ProtoSurgeon):
        return surgery.operate(graph.as_proto())
    linked = graph.linked()
    if surgery.needs_types:
        infer_shapes(linked)
    operator: IrSurgeon = surgery
    return operator.operate(linked)


def _told(outcome: Outcome) -> str:
    count = f"{outcome.changes} change{'' if outcome.changes == 1 else 's'}" if outcome.changes else "nothing to do"
    return f"{count}, {outcome.remark}" if outcome.remark else count


def _missing(surgeon: str, missed: Sequence[NotInGraph]) -> list[Problem]:
    """Returns a problem for each name, with what all graphs together have instead."""
    known: dict[tuple[str, str], list[str]] = {}
    for one in missed:
        known.setdefault((str(one), one.name), []).extend(one.known)
    return [
        Problem("unknown-name", f"{surgeon}: {cause}", remedy=did_you_mean(name, names) if names else None)
        for (cause, name), names in known.items()
    ]


def _interface(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(value.name for value in (*model.graph.input, *model.graph.output))


def _check_described(model: ModelHandle, graphs: Sequence[LazyGraph], before: dict[str, frozenset[str]]) -> None:
    """Refuses a graph without a tensor by whose name genai_config.json feeds or reads it."""
    import json

    config = model.folder / "genai_config.json"
    if model.kind != "genai" or not config.is_file():
        return
    described = set(_texts(json.loads(config.read_text(encoding="utf-8")).get("model", {})))
    for graph in graphs:
        linked = graph.linked().graph
        gone = before[graph.name] - {value.name for value in (*linked.inputs, *linked.outputs)}
        if named := sorted(gone & described):
            raise RunFailed(
                "described-name",
                f"genai_config.json names {', '.join(named)}, which {graph.name} has no longer",
                "leave the names of a model for onnxruntime-genai as they are",
            )


def _texts(section: Any) -> list[str]:
    if isinstance(section, str):
        return [section]
    below = section.values() if isinstance(section, dict) else section if isinstance(section, list) else ()
    return [text for one in below for text in _texts(one)]


def _write(model: ModelHandle, graphs: Sequence[LazyGraph], options: GraphSurgeriesOptions, context: PassContext) -> None:
    """Writes the graphs; weight files of graphs whose weights are as they were go along as they are, like every other file."""
    import onnx

    weights = {graph.name: external_files(model.folder / graph.name) for graph in graphs}
    kept = {graph.name for graph in graphs if _keeps_weights(graph, options, weights[graph.name])}
    rewritten = {file for name, files in weights.items() if name not in kept for file in files}
    carry(model, context.output, exclude={*weights, *rewritten, *(file for name in kept for file in weights[name])}, graph=True)
    for graph in graphs:
        if graph.name in kept:
            onnx.save(graph.as_proto(), context.output / graph.name)
            for file in weights[graph.name]:
                if not (context.output / file).exists():
                    link(model.folder / file, context.output / file)
        else:
            name = options.external_data_name if len(graphs) == 1 else None
            wanted = options.save_as_external_data or bool(weights[graph.name])
            external = replace(options.external_data(), wanted=wanted, name=name)
            save(graph.linked(), context.output / graph.name, external, share=options.remove_duplicate_initializers)


def _keeps_weights(graph: LazyGraph, options: GraphSurgeriesOptions, files: set[str]) -> bool:
    """Says whether the graph's weight files can stay as they are: all of their tensors are used, and no large one is new."""
    if not files or not options.all_tensors_to_one_file or options.external_data_name not in (None, *files):
        return False
    original = LazyGraph(graph.folder, graph.name).linked()
    return (
        _stored(original) == _stored(graph.linked()) and _inside(graph.linked()) <= _inside(original) + options.size_threshold
    )


def _stored(model: ir.Model) -> set[tuple[str, int | None, int | None]]:
    import onnx_ir as ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return {(str(one.location), one.offset, one.length) for one in tensors if isinstance(one, ir.ExternalTensor)}


def _inside(model: ir.Model) -> int:
    """Returns the bytes of the weights that stand in the graph itself."""
    import onnx_ir as ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(one.nbytes for one in tensors if one is not None and not isinstance(one, ir.ExternalTensor))


def save(model: ir.Model, path: Path, external: ExternalData, *, share: bool) -> None:
    """Writes a graph, streaming its weights from where they lie; equal ones are stored once when asked."""
    import onnx_ir as ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    if share:
        DeduplicateHashedInitializersPass()(model)
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(one.nbytes for one in tensors if one is not None)
    if external.one_file and not external.attributes and (external.wanted or size >= LARGE):
        name = external.name or f"{path.name}.data"
        ir.save(model, path, external_data=name, size_threshold_bytes=max(external.threshold, 256))
    else:
        ir.external_data.load_to_model(model)
        write_graph(ir.to_proto(model), path, external)


PASS = Pass(
    name="GraphSurgeries",
    summary="Changes ONNX graphs in small steps: ties embeddings, names dimensions, rewrites operators, mends leftovers.",
    options=GraphSurgeriesOptions,
    apply=operate,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx-ir", "onnx", "onnxscript"),
)
