"""Writes who made a model, from what and how, into the graph itself."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from runner.models.digest import sha256_of_file
from runner.models.files import carry, read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions


class AddOliveMetadataOptions(PassOptions):
    """Options of AddOliveMetadata."""

    graph_name: str = Field(description="name of the graph")
    custom_metadata: dict[str, Any] = Field(default_factory=dict, description="entries to add, name to value")
    add_optimization_info: bool = Field(True, description="add the task, the architecture and the precision as well")


def add_metadata(model: ModelHandle, options: AddOliveMetadataOptions, context: PassContext) -> ModelHandle:
    """Writes the graph with its name and metadata; weights stay in the files that they are in."""
    import onnx

    file = model.file or "model.onnx"
    carry(model, context.output, exclude={file}, graph=True)
    graph = read_graph(model.path, weights=False)
    graph.graph.name = options.graph_name
    entries = {entry.key: entry.value for entry in graph.metadata_props}
    entries |= {"model_hash": sha256_of_file(model.path), "producer": "onnx-recipes"}
    if options.add_optimization_info:
        entries |= _facts(model)
    entries |= {str(key): str(value) for key, value in options.custom_metadata.items()}
    onnx.helper.set_model_props(graph, entries)
    (context.output / file).write_bytes(graph.SerializeToString())
    return ModelHandle(model.kind, context.output, file, model.task, model.attributes)


def _facts(model: ModelHandle) -> dict[str, str]:
    known = {
        "hf_task": model.task,
        **{name: model.attributes.get(name) for name in ("architecture", "model_type", "precision")},
    }
    return {name: str(value) for name, value in known.items() if value}


PASS = Pass(
    name="AddOliveMetadata",
    summary="Names the graph and writes entries of metadata into it.",
    options=AddOliveMetadataOptions,
    apply=add_metadata,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx",),
)
