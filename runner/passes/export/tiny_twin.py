"""The tiny random-weight twin of a model, as a Hugging Face folder that every later step accepts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.models.torch_source import auto_class
from runner.models.twin import architecture_of
from runner.models.twin_shrink import shrink
from runner.models.twin_table import Twin
from runner.models.twin_tokenizer import train_tokenizer
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SEED = 20
LOGIT_SPREAD = 3.0  # standard deviation of a language model's logits, as trained models have it


class TinyTwinOptions(PassOptions):
    """Options of TinyTwin."""

    model_id: str = Field(description="Hugging Face id, or a local folder with a config.json")
    task: str | None = Field(None, description="Hugging Face task; the model's usual one by default")
    arch: str | None = Field(None, description="an id or folder whose architecture to take when model_id itself is unknown")


def _apply(model: ModelHandle, options: TinyTwinOptions, context: PassContext) -> ModelHandle:
    twin = architecture_of(options.arch or options.model_id)
    task = options.task or twin.task
    context.say(f"making a tiny {twin.model_type} with random weights in place of {options.model_id}")
    return make_twin(twin, task, context.output)


def make_twin(twin: Twin, task: str, folder: Path) -> ModelHandle:
    """Writes the twin's config, weights, tokenizer or image processor into `folder` and returns its handle.

    The same twin gives the same bytes: every weight comes from one seeded generator.
    """
    from transformers import AutoConfig

    tokenizer = train_tokenizer(twin.vocabulary) if twin.vocabulary else None
    tiny = shrink(twin.model_type, twin.facts)
    if tokenizer is not None:
        ids = _token_ids(tokenizer, twin)
        tiny = _named_ids(tiny, tokenizer, ids["vocab_size"])
        if "text_config" in tiny:
            tiny["text_config"] = {**_named_ids(tiny["text_config"], tokenizer, ids["vocab_size"]), **ids}
        else:
            tiny |= ids
    if "vision_config" in twin.facts and task.startswith("text-generation"):
        task = twin.task  # the language part alone would be another architecture
    module = _module(AutoConfig.for_model(twin.model_type, **tiny), task)
    module.save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if twin.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(twin.processor), indent=2), encoding="utf-8")
    return ModelHandle("hf", folder, task=task, attributes={"model_type": twin.model_type, "twin_of": twin.pattern})


def _token_ids(tokenizer: PreTrainedTokenizerFast, twin: Twin) -> dict[str, Any]:
    """Entries of the config that name tokens; the vocabulary is padded, as published models pad theirs.

    Its size is an odd multiple of 16 and so differs from the width of every layer, which are multiples of 32: exporters
    that find the head by its width must not meet another layer first.
    """
    vocabulary = twin.vocabulary
    assert vocabulary is not None
    ids: dict[str, Any] = {"vocab_size": -(-(len(tokenizer) + 16) // 32) * 32 - 16}
    for role in ("bos_token", "eos_token", "pad_token"):
        ids[f"{role}_id"] = getattr(tokenizer, f"{role}_id") if role in vocabulary.roles else None
    if len(vocabulary.stops) > 1:
        ids["eos_token_id"] = [tokenizer.convert_tokens_to_ids(token) for token in vocabulary.stops]
    return ids


def _named_ids(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """Returns the entries with ids in place of tokens; an id of the real vocabulary that the small one lacks is left out."""
    resolved = {}
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")):
            value = tokenizer.convert_tokens_to_ids(value) if isinstance(value, str) else value
            if isinstance(value, int) and value >= size:
                continue
        resolved[key] = value
    return resolved


def _module(config: PretrainedConfig, task: str) -> PreTrainedModel:
    import torch
    from transformers import GenerationConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module: PreTrainedModel = auto_class(task).from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            _fill(module, torch.Generator().manual_seed(SEED))
            _settle_batch_norms(module)
    if task == "text-generation":
        module.generation_config = GenerationConfig.from_model_config(module.config)
    return module


def _fill(module: PreTrainedModel, random: torch.Generator) -> None:
    """Draws weights at the scale that keeps activations near one, as training does; norms stay near the identity."""
    import torch

    output = module.get_output_embeddings()
    tied_or_head = {id(output.weight)} if output is not None else set()
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if id(weight) in tied_or_head:
                weight.normal_(0.0, LOGIT_SPREAD / math.sqrt(weight.shape[-1]), generator=random)
            elif "Norm" in type(part).__name__ and name == "weight":
                weight.normal_(float(weight.mean()), 0.1, generator=random)  # fresh ones are all 1, or 0 where 1 is added
            elif weight.dim() > 1:
                fan_in = weight[0].numel() if not isinstance(part, torch.nn.Embedding) else weight.shape[-1]
                gain = math.sqrt(2.0) if isinstance(part, torch.nn.Conv2d) else 1.0
                weight.normal_(0.0, gain / math.sqrt(fan_in), generator=random)
            else:
                weight.normal_(0.0, 0.05, generator=random)
    module.tie_weights()


def _settle_batch_norms(module: PreTrainedModel) -> None:
    """Gives batch norms the statistics of real activations, as training does, by running noise images through."""
    import torch

    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
    module.train()
    for _ in range(2):
        module(torch.randn(4, module.config.num_channels, 224, 224, generator=torch.Generator().manual_seed(SEED)))
    module.eval()


PASS = Pass(
    name="TinyTwin",
    summary="Makes a tiny model of the same architecture with random weights, for quick runs of a whole recipe.",
    options=TinyTwinOptions,
    apply=_apply,
    takes=("hf", "pytorch", "gguf", "onnx"),
    gives="hf",
    packages=("torch", "transformers", "tokenizers"),
)
