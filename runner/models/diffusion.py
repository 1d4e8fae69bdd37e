"""Pipelines that draw from a text, in diffusers' layout: their components, what goes into each and what comes out.

Imports no ML library. The names of inputs and outputs are those of diffusers' and optimum's ONNX pipelines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from runner.errors import ModelUnavailable, PackageMissing, Problem, did_you_mean
from runner.models.checkpoint import read_json
from runner.models.handle import ModelHandle
from runner.models.hub import INDEX
from runner.models.inputs import GraphInput

Variant = Literal["sd", "sdxl"]
TASK = "text-to-image"
TOKENS = 77  # length of every prompt: shorter ones are padded to it
VARIANTS: Mapping[str, Variant] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
COMPONENTS: Mapping[Variant, tuple[str, ...]] = {
    "sd": ("text_encoder", "unet", "vae_encoder", "vae_decoder"),
    "sdxl": ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"),
}
# What lies beside the components and is needed to run them.
COMPANIONS: Mapping[Variant, tuple[str, ...]] = {
    "sd": ("tokenizer", "scheduler"),
    "sdxl": ("tokenizer", "tokenizer_2", "scheduler"),
}
# What onnxruntime.transformers calls their graphs.
_FUSED_AS = {"text_encoder": "clip", "text_encoder_2": "clip", "unet": "unet", "vae_encoder": "vae", "vae_decoder": "vae"}
_COMPONENT = "component"
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Component:
    """One model of a pipeline.

    Attributes:
        name: its name, and the folder of its graph.
        source: the folder of its weights; one autoencoder gives both an encoder and a decoder.
        inputs: what goes in, in order; a text as a size is one that varies.
        outputs: what comes out: name to sizes.
        attributes: what later steps need to know of it.
    """

    name: str
    source: str
    inputs: tuple[GraphInput, ...]
    outputs: Mapping[str, tuple[int | str, ...]]
    attributes: Mapping[str, Any]


def require_diffusers() -> None:
    """Makes sure that diffusers is installed.

    Raises:
        PackageMissing: it is not.
    """
    if find_spec("diffusers") is None:
        raise PackageMissing(
            Problem(
                "package-missing",
                "models that draw need the package diffusers, which is not installed",
                remedy="pip install 'diffusers>=0.42', or this package with its extra: pip install -e '.[diffusion]'",
            )
        )


def variant_of(folder: Path, asked: str | None = None) -> Variant:
    """Returns the kind of the pipeline in a folder: the one that was asked for, or the one that its index names.

    Raises:
        ModelUnavailable: the folder holds no pipeline, or one of another kind.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ModelUnavailable(
            "model-damaged", f"{folder} has no {INDEX}", "name a diffusers folder, with one folder a component"
        )
    if asked in COMPONENTS:
        return cast("Variant", asked)
    named = str(read_json(path).get("_class_name"))
    if named not in VARIANTS:
        raise ModelUnavailable(
            "unknown-pipeline",
            f"{path}: pipelines of class '{named}' are not served",
            f"{did_you_mean(named, VARIANTS)}; input_model.model_variant (sd or sdxl) overrules it",
        )
    return VARIANTS[named]


def source_folders(variant: Variant) -> tuple[str, ...]:
    """Returns the folders of a source that are read: of its weights, tokenizers and scheduler."""
    weights = dict.fromkeys("vae" if name.startswith("vae") else name for name in COMPONENTS[variant])
    return (*weights, *COMPANIONS[variant])


def pipeline_files(folder: Path, variant: Variant, form: str | None = None) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files of a pipeline that decide what it is.

    Args:
        folder: of the pipeline.
        variant: its kind.
        form: of the weights, such as ``fp16``, which diffusers calls their variant; None for the full ones.

    Raises:
        ModelUnavailable: a component, or its weights, are not there.
    """
    found = [(INDEX, folder / INDEX)]
    for part in source_folders(variant):
        files = sorted((folder / part).glob("*")) if (folder / part).is_dir() else []
        weights = [path for path in files if path.suffix in _WEIGHTS and _form(path.name) == form]
        safe = [path for path in weights if path.suffix == ".safetensors"]
        if part not in COMPANIONS[variant] and not weights:
            raise _without_weights(folder / part, files, form)
        if not files:
            raise ModelUnavailable("model-damaged", f"{folder} has no {part}", "download the model again")
        kept = [path for path in files if path.suffix in (".json", ".txt", ".model")]
        found += [(f"{part}/{path.name}", path) for path in (*kept, *(safe or weights))]
    return found


def _without_weights(folder: Path, files: Sequence[Path], form: str | None) -> ModelUnavailable:
    there = sorted({found for path in files if path.suffix in _WEIGHTS and (found := _form(path.name))})
    cause = f"{folder} holds no weights (*{'.' + form if form else ''}.safetensors)"
    if not there:
        return ModelUnavailable("model-damaged", cause, "download the model again")
    return ModelUnavailable(
        "model-damaged", f"{cause}, but {', '.join(there)}", f'set input_model.load_kwargs to {{"variant": "{there[0]}"}}'
    )


def form_of_weights(folder: Path, variant: Variant, asked: str | None) -> str | None:
    """Returns the form of a pipeline's weights that is read: the one that was asked for, else the full ones.

    A folder that was saved in another form alone, such as ``fp16``, is read in that one.
    """
    parts = [part for part in source_folders(variant) if part not in COMPANIONS[variant]]
    forms = [{_form(path.name) for path in (folder / part).glob("*") if path.suffix in _WEIGHTS} for part in parts]
    common = set.intersection(*forms)
    if asked or any(None in one for one in forms) or len(common) != 1:
        return asked
    return common.pop()


def _form(name: str) -> str | None:
    """Returns ``fp16`` for model.fp16.safetensors and its shards, and None for model.safetensors and its shards."""
    found = re.fullmatch(r"[^.]*\.(.+?)(-\d+-of-\d+)?", Path(name).stem)
    return found[1] if found else None


def source_parts(source: ModelHandle) -> dict[str, ModelHandle]:
    """Returns a handle of each component of a `diffusers` source, by name."""
    names = COMPONENTS[source.attributes["model_variant"]]
    return {name: replace(source, attributes={**source.attributes, _COMPONENT: name}) for name in names}


def component_files(part: ModelHandle) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files that decide what a component of a source is.

    Raises:
        ModelUnavailable: some are not there.
    """
    files = pipeline_files(part.folder, part.attributes["model_variant"], part.attributes.get("load_kwargs", {}).get("variant"))
    folder = component_of(part).source
    return [(name, path) for name, path in files if name.startswith(f"{folder}/")]


def component_of(part: ModelHandle) -> Component:
    """Returns what is known of a component of a source, from its configuration.

    Raises:
        ModelUnavailable: its configuration is not there, or cannot be read.
    """
    name, folder = part.attributes[_COMPONENT], part.folder
    if name.startswith("text_encoder"):
        return _text_encoder(name, read_json(folder / name / "config.json"), part.attributes["model_variant"])
    if name == "unet":
        return _unet(read_json(folder / name / "config.json"))
    return _autoencoder(name, read_json(folder / "vae" / "config.json"))


def pixels_per_latent(autoencoder: Mapping[str, Any]) -> int:
    """Returns how many pixels wide and high one latent of an autoencoder is: it halves between its blocks."""
    return int(2 ** (len(autoencoder["block_out_channels"]) - 1))


def _attributes(name: str, **more: Any) -> dict[str, Any]:
    return {_COMPONENT: name, "model_type": _FUSED_AS[name], **{key: value for key, value in more.items() if value}}


def _text_encoder(name: str, config: Mapping[str, Any], variant: Variant) -> Component:
    """XL reads the hidden states before the last layer; all are given, in the names that optimum gives them."""
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    hidden = {"last_hidden_state": ("batch", "sequence", width)}
    if variant == "sdxl":
        hidden |= {f"hidden_states.{layer}": ("batch", "sequence", width) for layer in range(layers)}
    pooled: dict[str, tuple[int | str, ...]] = {"pooler_output": ("batch", width)}
    if name == "text_encoder_2":
        pooled = {"text_embeds": ("batch", int(config["projection_dim"]))}
    return Component(
        name,
        name,
        (GraphInput("input_ids", "int32", ("batch", "sequence")),),
        {**pooled, **hidden} if name == "text_encoder_2" else {**hidden, **pooled},
        _attributes(name, num_attention_heads=config["num_attention_heads"], hidden_size=width),
    )


def _unet(config: Mapping[str, Any]) -> Component:
    inputs = [
        GraphInput("sample", "float32", ("batch", int(config["in_channels"]), "height", "width")),
        GraphInput("timestep", "float32", ("steps",)),
        GraphInput("encoder_hidden_states", "float32", ("batch", "sequence", _width(config["cross_attention_dim"]))),
    ]
    if config.get("time_cond_proj_dim") is not None:
        inputs.append(GraphInput("timestep_cond", "float32", ("batch", int(config["time_cond_proj_dim"]))))
    if config.get("addition_embed_type") == "text_time":
        of_ids = 6 * int(config["addition_time_embed_dim"])
        pooled = int(config["projection_class_embeddings_input_dim"]) - of_ids
        inputs.append(GraphInput("text_embeds", "float32", ("batch", pooled)))
        inputs.append(GraphInput("time_ids", "float32", ("batch", 6)))
    outputs = {"out_sample": ("batch", int(config["out_channels"]), "height", "width")}
    return Component("unet", "unet", tuple(inputs), outputs, _attributes("unet"))


def _width(given: int | list[int]) -> int:
    return int(given[0] if isinstance(given, list) else given)


def _autoencoder(name: str, config: Mapping[str, Any]) -> Component:
    latents, upcast = int(config["latent_channels"]), config.get("force_upcast")
    if name == "vae_decoder":
        inputs = (GraphInput("latent_sample", "float32", ("batch", latents, "height", "width")),)
        outputs: dict[str, tuple[int | str, ...]] = {
            "sample": ("batch", int(config["out_channels"]), "out_height", "out_width")
        }
    else:
        inputs = (GraphInput("sample", "float32", ("batch", int(config["in_channels"]), "height", "width")),)
        outputs = {  # the mean comes first, which is what diffusers' ONNX pipelines read; then mean and log of variance
            "latent_sample": ("batch", latents, "latent_height", "latent_width"),
            "latent_parameters": ("batch", 2 * latents, "latent_height", "latent_width"),
        }
    return Component(name, "vae", inputs, outputs, _attributes(name, force_upcast=upcast))
