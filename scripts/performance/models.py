"""The models that are measured: real weights where packages bring them, random ones of the real shape otherwise.

Random weights are as good as real ones for time and memory. Everything is made once, in the suite's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runner
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import train_tokenizer

_SHARD_BYTES = 2 << 30
_DEVIATION = 0.02


@dataclass(frozen=True)
class Made:
    """What a recipe made: the optimised model's folder and the source's, a transformers folder."""

    folder: Path
    source: Path


def by_recipe(recipe: str, output: Path, model: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Made:
    """Runs a recipe (ID or ID/VARIANT), on a folder in place of its own source if one is given; finished steps are kept.

    Raises:
        RecipeError: it fails.
    """
    result = runner.run(runner.load_recipe(recipe, model=model, output=output, overrides=overrides))
    return Made(result.folder, result.outcome.source.folder)


def random_encoder(known_as: str, auto_class: str, folder: Path) -> Path:
    """Returns a transformers folder of an encoder's own shape with random fp32 weights."""
    if not (folder / "done").is_file():
        import torch
        import transformers

        twin = architecture_of(known_as)
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(twin.model_type, **_plain(twin.facts))
        getattr(transformers, auto_class).from_config(config).save_pretrained(folder)
        if twin.vocabulary is not None:
            train_tokenizer(twin.vocabulary).save_pretrained(folder)
        if twin.processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(dict(twin.processor)), encoding="utf-8")
        (folder / "done").touch()
    return folder


def random_decoder(known_as: str, folder: Path) -> Path:
    """Returns a transformers folder of a language model's own shape: random bf16 weights in shards of 2 GiB."""
    if (folder / "done").is_file():
        return folder
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    twin = architecture_of(known_as)
    assert twin.vocabulary is not None
    tokenizer = train_tokenizer(twin.vocabulary)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(twin.model_type, **{**_plain(twin.facts), **ids, "dtype": "bfloat16"})
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    shards = list(_shards(shapes))
    generator = torch.Generator().manual_seed(0)
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _random(shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(map(_bytes, shapes.values()))}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "done").touch()
    return folder


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts without ids of tokens that are told by their text."""
    kept = {name: value for name, value in facts.items() if not name.endswith(("_token_id", "_token_index"))}
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _bytes(shape: tuple[int, ...]) -> int:
    size = 2
    for one in shape:
        size *= one
    return size


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + _bytes(shape) > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(shape)
    yield names


def _random(shape: tuple[int, ...], generator: Any) -> Any:
    import torch

    if len(shape) == 1:  # weights of norms
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, _DEVIATION, generator=generator)
