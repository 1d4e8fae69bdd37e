"""A diffusers pipeline to ONNX: one graph a component, in the layout of diffusers' ONNX pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.models.checkpoint import read_json
from runner.models.components import MANIFEST, pipeline_of
from runner.models.diffusion import COMPANIONS, TOKENS, Component, component_of, source_parts
from runner.models.diffusion_torch import load_component
from runner.models.digest import files_below
from runner.models.files import ExternalData, link, write_graph
from runner.models.handle import ModelHandle
from runner.models.hub import INDEX
from runner.models.inputs import made_up
from runner.passes.declaration import PassContext
from runner.passes.export.from_transformers import tensors
from runner.passes.export.torch_export import Export

if TYPE_CHECKING:
    import onnx
    import torch

GRAPH = "model.onnx"
# Two prompts, and latents that are no square: sizes that must stay apart differ.
_SIZES = {"batch": 2, "sequence": TOKENS, "height": 16, "width": 24, "steps": 1}
_CLASS_NAMES = {"sd": "OnnxStableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
_WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "sd": {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False},
    "sdxl": {},
}
_RUNTIME_MODEL = ["diffusers", "OnnxRuntimeModel"]


def convert_component(
    part: ModelHandle,
    export: Callable[[Export], onnx.ModelProto],
    external: ExternalData,
    context: PassContext,
    *,
    dynamic: bool,
    fused: bool,
    opset: int,
) -> ModelHandle:
    """Writes one component of a `diffusers` source as a graph, with its configuration beside it.

    Args:
        part: the component, see `runner.models.diffusion.source_parts`.
        export: makes the graph.
        external: how weights are stored.
        context: its output folder gets everything.
        dynamic: leave batch, sequence and image sizes free.
        fused: keep attention as one operator, as PyTorch has it.
        opset: version of ONNX's operators, for the receipt.
    """
    module, component = load_component(part)
    wanted = _export_of(module, component, part.folder, fused=fused)
    write_graph(export(wanted if dynamic else wanted.fixed()), context.output / GRAPH, external)
    link(part.folder / component.source / "config.json", context.output / "config.json")
    return ModelHandle("onnx", context.output, GRAPH, part.task, {**component.attributes, "opset": opset})


def assemble_pipeline(source: ModelHandle, made: Mapping[str, ModelHandle], output: Path) -> ModelHandle:
    """Returns the pipeline of the graphs of a source's components; tokenizers, scheduler and index go along.

    Args:
        source: of kind `diffusers`.
        made: the graph of each component, in the folder of its name below `output`.
        output: the folder of the pipeline.
    """
    parts = source_parts(source)
    components = {name: component_of(parts[name]) for name in made}
    described = {
        name: {
            "file": f"{name}/{made[name].file}",
            "inputs": [one.name for one in component.inputs],
            "outputs": list(component.outputs),
        }
        for name, component in components.items()
    }
    for companion in COMPANIONS[source.attributes["model_variant"]]:
        for file, path in files_below(source.folder / companion):
            link(path, output / companion / file)
    _write_json(output / MANIFEST, {"components": described})
    _write_json(output / INDEX, _index(source, list(made)))
    kept = {key: value for key, value in source.attributes.items() if key != "load_kwargs"}
    return pipeline_of(output, made.items(), source.task, **kept)


def _export_of(module: torch.nn.Module, component: Component, folder: Path, *, fused: bool) -> Export:
    if not fused:
        _spell_attention_out(module, component.name)
    example = tensors(made_up(component.inputs, folder / component.source, _SIZES))
    shapes = {one.name: one.shape for one in component.inputs} | dict(component.outputs)
    axes = {name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for name, shape in shapes.items()}
    return Export(
        module,
        tuple(example.values()),
        {},
        list(example),
        list(component.outputs),
        axes,
        as_far_as_possible=True,
    )


def _spell_attention_out(module: Any, component: str) -> None:
    """Puts attention into the form that the fusions of onnxruntime.transformers know.

    Not in the autoencoder, whose fusion there drops the biases of query, key and value (onnxruntime 1.32).
    """
    from diffusers.models.attention_processor import AttnProcessor

    if component == "unet":
        module.model.set_attn_processor(AttnProcessor())
    elif component.startswith("text_encoder"):
        module.model.set_attn_implementation("eager")


def _index(model: ModelHandle, components: list[str]) -> dict[str, Any]:
    """Returns the source's index with ONNX models in place of its components, and without a safety checker."""
    source = read_json(model.folder / INDEX)
    variant = model.attributes["model_variant"]
    kept = {key: value for key, value in source.items() if key in (*COMPANIONS[variant], "_diffusers_version")}
    switches = {key: value for key, value in source.items() if isinstance(value, bool)}
    named = dict.fromkeys(components, _RUNTIME_MODEL)
    return {"_class_name": _CLASS_NAMES[variant], **kept, **named, **switches, **_WITHOUT[variant]}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
