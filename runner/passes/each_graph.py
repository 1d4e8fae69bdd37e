"""Rewrites every ONNX graph of a model with one function: the one graph of an `onnx` model, all of a `genai` folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.models.external_weights import read_in_place, weight_file
from runner.models.files import ExternalData, carry, external_files, graphs_of, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext

if TYPE_CHECKING:
    import onnx

    Put = Callable[[onnx.TensorProto], None]


def rewrite_each(
    model: ModelHandle,
    context: PassContext,
    change: Callable[[onnx.ModelProto, str], onnx.ModelProto],
    external: ExternalData,
    **attributes: Any,
) -> ModelHandle:
    """Writes the model with its graphs changed; every other file goes along.

    Args:
        model: of kind `onnx` or `genai`.
        context: its output folder gets the result.
        change: gets a graph with its weights and the graph's file name, and returns the new graph.
        external: how the new weights are stored. Where there are several graphs each has a weight file of its own name.
        attributes: set on the handle that is returned.
    """
    for name, stored in _each(model, context, external):
        write_graph(change(read_graph(model.folder / name), name), context.output / name, stored)
    return ModelHandle(model.kind, context.output, model.file, model.task, {**model.attributes, **attributes})


def rewrite_each_weight(
    model: ModelHandle, context: PassContext, change: Callable[[onnx.ModelProto, str, Put], None], external: ExternalData
) -> ModelHandle:
    """Writes the model with its graphs changed in place; weights that lie beside a graph are never in memory all at once.

    Args:
        model: of kind `onnx` or `genai`.
        context: its output folder gets the result.
        change: gets a graph as `read_in_place` gives it, the graph's file name, and what takes the values of a new tensor out
            of memory.
        external: how the new weights are stored, as for `rewrite_each`.
    """
    for name, stored in _each(model, context, external):
        path = context.output / name
        if not stored.wanted or not stored.one_file or stored.attributes:
            graph = read_graph(model.folder / name)
            change(graph, name, lambda _: None)
            write_graph(graph, path, stored)
            continue
        graph = read_in_place(model.folder / name)
        with weight_file(path, stored.name, stored.kept_below) as weights:
            change(graph, name, weights.put)
            weights.put_rest(graph)
        path.write_bytes(graph.SerializeToString())
    return ModelHandle(model.kind, context.output, model.file, model.task, dict(model.attributes))


def _each(model: ModelHandle, context: PassContext, external: ExternalData) -> Iterator[tuple[str, ExternalData]]:
    """Carries every other file along; yields the name of each graph and how its weights are stored."""
    names = graphs_of(model)
    weights = {name: external_files(model.folder / name) for name in names}
    carry(model, context.output, exclude={*names, *(file for files in weights.values() for file in files)}, graph=True)
    for name in names:
        wanted, file = external.wanted or bool(weights[name]), external.name if len(names) == 1 else None
        yield name, replace(external, wanted=wanted, name=file)
