"""The tiny random-weight twin of a pipeline that draws, as a diffusers folder that every later step accepts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.models.diffusion import TASK, TOKENS, VARIANTS, Variant, require_diffusers
from runner.models.diffusion_twin import configs_of, shrink_pipeline
from runner.models.handle import ModelHandle
from runner.models.hub import INDEX
from runner.models.twin_tokenizer import train_tokenizer
from runner.models.twin_vocabulary import CLIP
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SEED = 20
_SWITCHES: Mapping[Variant, Mapping[str, bool]] = {
    "sd": {"requires_safety_checker": False},
    "sdxl": {"force_zeros_for_empty_prompt": True},
}
_TOKENIZER = ["transformers", "PreTrainedTokenizerFast"]


class TinyPipelineOptions(PassOptions):
    """Options of TinyPipeline."""

    model_id: str = Field(description="Hugging Face id, or a local folder with a model_index.json")
    model_variant: Variant | None = Field(None, description="kind of pipeline; what the id or the folder says by default")


def make_pipeline(model: ModelHandle, options: TinyPipelineOptions, context: PassContext) -> ModelHandle:
    """Writes a pipeline of the same classes with few small layers and random weights; the same bytes every time.

    Raises:
        PackageMissing: diffusers is not installed.
        InvalidRecipe: nothing says what kind of pipeline it is.
    """
    require_diffusers()
    variant, published = configs_of(options.model_id, options.model_variant)
    context.say(f"making a tiny {variant} pipeline with random weights in place of {options.model_id}")
    write_pipeline(variant, shrink_pipeline(published), context.output)
    return ModelHandle("diffusers", context.output, None, TASK, {"model_variant": variant, "twin_of": options.model_id})


def write_pipeline(variant: Variant, configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes a diffusers folder with random weights and a small tokenizer; the same bytes every time.

    Args:
        variant: the kind of pipeline.
        configs: the configuration of every component, and of the scheduler, by its folder.
        folder: that it goes into.
    """
    tokenizer = _tokenizer()
    entries: dict[str, list[str]] = {}
    for name, config in configs.items():
        if name == "scheduler":
            entries[name] = ["diffusers", _write_scheduler(config, folder / name)]
            continue
        module = _module(name, config, tokenizer)
        module.save_pretrained(folder / name, safe_serialization=True)
        entries[name] = [type(module).__module__.partition(".")[0], type(module).__name__]
    for name in ("tokenizer", "tokenizer_2") if variant == "sdxl" else ("tokenizer",):
        tokenizer.save_pretrained(folder / name)
        entries[name] = _TOKENIZER
    class_name = next(key for key, kind in VARIANTS.items() if kind == variant)
    index = {"_class_name": class_name, **entries, **_SWITCHES[variant]}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(CLIP)
    tokenizer.model_max_length = TOKENS
    begin, end = str(tokenizer.bos_token), str(tokenizer.eos_token)
    numbered = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A {end}", special_tokens=numbered)
    return tokenizer


def _write_scheduler(config: Mapping[str, Any], folder: Path) -> str:
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return str(config["_class_name"])


def _module(name: str, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = _text_encoder(name, config, tokenizer) if name.startswith("text") else _diffusers_model(name, config)
        with torch.no_grad():
            _fill(module, torch.Generator().manual_seed(SEED))
    return module.eval()


def _text_encoder(name: str, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    facts = CLIPTextConfig(**{**config, **ids, "vocab_size": len(tokenizer)})
    made: torch.nn.Module = (CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel)(facts)
    return made


def _diffusers_model(name: str, config: Mapping[str, Any]) -> torch.nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    made: torch.nn.Module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[name].from_config(dict(config))
    return made


def _fill(module: torch.nn.Module, random: torch.Generator) -> None:
    """Draws weights that keep activations near one, as training does, so that a picture has contrast to lose."""
    import torch

    for part in module.modules():
        for weight in part.parameters(recurse=False):
            if weight.dim() > 1:
                fan_in = weight.shape[-1] if isinstance(part, torch.nn.Embedding) else weight[0].numel()
                weight.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=random)
            elif "Norm" in type(part).__name__ and weight is part.weight:
                weight.normal_(1.0, 0.1, generator=random)
            else:
                weight.normal_(0.0, 0.05, generator=random)


PASS = Pass(
    name="TinyPipeline",
    summary="Makes a tiny pipeline of the same classes with random weights, for quick runs of a whole recipe.",
    options=TinyPipelineOptions,
    apply=make_pipeline,
    takes=("diffusers",),
    gives="diffusers",
    packages=("torch", "transformers", "tokenizers", "diffusers"),
)
