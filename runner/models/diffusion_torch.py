"""The components of a diffusers pipeline as PyTorch modules, in fp32 on the CPU, that take and give what their graphs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable
from runner.models.diffusion import VARIANTS, Component, component_of, require_diffusers
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Tensors = Mapping[str, torch.Tensor]

# Libraries and classes; a pipeline of these two kinds has no others.
_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae_encoder": ("diffusers", "AutoencoderKL"),
    "vae_decoder": ("diffusers", "AutoencoderKL"),
}
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)
_HIDDEN = "hidden_states."


def load_component(part: ModelHandle) -> tuple[torch.nn.Module, Component]:
    """Returns (module, description) of a component: its forward takes the described inputs in order, and gives the outputs.

    Args:
        part: of a `diffusers` source, see `runner.models.diffusion.source_parts`.

    Raises:
        PackageMissing: diffusers is not installed.
        ModelUnavailable: weights or configuration are missing or damaged.
    """
    import torch

    require_diffusers()
    component = component_of(part)
    inner = _load(part, component)
    run = _run_of(component.name)

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = dict(zip((one.name for one in component.inputs), args, strict=True))
            found = run(self.model, given)
            return tuple(_named(found, name) for name in component.outputs)

    return Flat().eval(), component


def _load(part: ModelHandle, component: Component) -> torch.nn.Module:
    import diffusers
    import torch
    import transformers

    library, name = _CLASSES[component.name]
    loader = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    given: dict[str, Any] = {"dtype": torch.float32}
    if variant := part.attributes.get("load_kwargs", {}).get("variant"):
        given["variant"] = variant
    try:
        module: torch.nn.Module = loader.from_pretrained(part.folder / component.source, local_files_only=True, **given)
    except _UNREADABLE as error:
        raise ModelUnavailable(
            "model-damaged",
            f"{part.folder / component.source} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "fetch the model again",
        ) from error
    return module.eval()


def _named(found: Mapping[str, Any], name: str) -> torch.Tensor:
    if name.startswith(_HIDDEN):
        hidden: torch.Tensor = found["hidden_states"][int(name.removeprefix(_HIDDEN))]
        return hidden
    tensor: torch.Tensor = found[name]
    return tensor


def _run_of(component: str) -> Callable[[Any, Tensors], Mapping[str, Any]]:
    if component.startswith("text_encoder"):
        return _encode_text
    return {"unet": _denoise, "vae_encoder": _encode_image, "vae_decoder": _decode_image}[component]


def _encode_text(module: Any, given: Tensors) -> Mapping[str, Any]:
    found: Mapping[str, Any] = module(input_ids=given["input_ids"], output_hidden_states=True, return_dict=True)
    return found


def _denoise(module: Any, given: Tensors) -> Mapping[str, Any]:
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    found = module(
        given["sample"],
        given["timestep"],
        given["encoder_hidden_states"],
        timestep_cond=given.get("timestep_cond"),
        added_cond_kwargs=added or None,
        return_dict=True,
    )
    return {"out_sample": found.sample}


def _encode_image(module: Any, given: Tensors) -> Mapping[str, Any]:
    found = module.encode(given["sample"], return_dict=True).latent_dist
    return {"latent_sample": found.mode(), "latent_parameters": found.parameters}


def _decode_image(module: Any, given: Tensors) -> Mapping[str, Any]:
    return {"sample": module.decode(given["latent_sample"], return_dict=True).sample}


def component_outputs(part: ModelHandle, inputs: Mapping[str, NDArray[Any]], threads: int) -> dict[str, NDArray[np.float32]]:
    """Returns what a component of a source gives for inputs by name, as fp32 arrays by name."""
    import torch

    module, component = load_component(part)
    torch.set_num_threads(threads)
    with torch.inference_mode():
        results = module(*(torch.from_numpy(inputs[one.name]) for one in component.inputs))
    return {name: result.float().numpy() for name, result in zip(component.outputs, results, strict=True)}


def pipeline_class(source: ModelHandle) -> Any:
    """Returns diffusers' class of a source."""
    import diffusers

    variant = source.attributes["model_variant"]
    return getattr(diffusers, next(name for name, one in VARIANTS.items() if one == variant))


def load_pipeline(source: ModelHandle) -> Any:
    """Returns diffusers' own pipeline of a source: fp32, on the CPU, quiet, without safety checker and watermark.

    Raises:
        PackageMissing: diffusers is not installed.
        ModelUnavailable: weights or configuration are missing or damaged.
    """
    import torch

    require_diffusers()
    of_sd = source.attributes["model_variant"] == "sd"
    options = {"safety_checker": None, "requires_safety_checker": False} if of_sd else {"add_watermarker": False}
    if form := source.attributes.get("load_kwargs", {}).get("variant"):
        options["variant"] = form
    try:
        pipeline = pipeline_class(source).from_pretrained(source.folder, dtype=torch.float32, local_files_only=True, **options)
    except _UNREADABLE as error:
        raise ModelUnavailable(
            "model-damaged", f"{source.folder} cannot be loaded: {str(error).strip().splitlines()[0]}", "fetch the model again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
