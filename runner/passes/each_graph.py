"""Rewrites every ONNX graph of a model with one function: the one graph of an `onnx` model, all of a `genai` folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.models.files import ExternalData, carry, external_files, graphs_of, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext

if TYPE_CHECKING:
    import onnx


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
    names = graphs_of(model)
    weights = {name: external_files(model.folder / name) for name in names}
    carry(model, context.output, exclude={*names, *(file for files in weights.values() for file in files)}, graph=True)
    for name in names:
        changed = change(read_graph(model.folder / name), name)
        wanted, file = external.wanted or bool(weights[name]), external.name if len(names) == 1 else None
        write_graph(changed, context.output / name, replace(external, wanted=wanted, name=file))
    return ModelHandle(model.kind, context.output, model.file, model.task, {**model.attributes, **attributes})
