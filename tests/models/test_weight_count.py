from collections.abc import Mapping
from typing import Any

import pytest

from runner.models.twin import KNOWN, architecture_of
from runner.models.weight_count import DRAWING, count_weights


def real_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as entries of a whole config.json: layer kinds repeated over all layers, no names of tokens, no rotation."""
    config = {}
    for key, value in facts.items():
        if key in ("text_config", "vision_config"):
            config[key] = real_config(value)
        elif key in ("layer_types", "no_rope_layers"):
            config[key] = (list(value) * facts["num_hidden_layers"])[: facts["num_hidden_layers"]]
        elif key != "rope_scaling" and not key.endswith(("_token_id", "_token_index")):
            config[key] = value
    return config


@pytest.mark.parametrize(
    "model_id",
    [
        "meta-llama/Llama-3.2-1B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen3-0.6B",
        "google/gemma-2-2b-it",
        "google/gemma-3-1b-it",
        "microsoft/Phi-4-mini-instruct",
        "mistralai/Mistral-Nemo-Instruct-2407",
        "allenai/OLMo-2-0425-1B",
        "allenai/OLMo-1B-hf",
        "nvidia/Nemotron-Mini-4B-Instruct",
        "google-bert/bert-base-uncased",
        "Intel/bert-base-uncased-mrpc",
        "sentence-transformers/all-MiniLM-L6-v2",
        "FacebookAI/xlm-roberta-base",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "google/vit-base-patch16-224",
        "google/vit-base-patch16-224-in21k",
        "facebook/dinov2-small",
        "openai/clip-vit-large-patch14",
        "openai/whisper-tiny",
        "microsoft/resnet-18",
        "microsoft/resnet-50",
    ],
)
def test_the_count_is_that_of_the_real_class(model_id: str) -> None:
    import torch
    from transformers import AutoConfig

    from runner.models.torch_source import auto_class

    twin = architecture_of(model_id)
    with torch.device("meta"):
        module = auto_class(twin.task).from_config(AutoConfig.for_model(twin.model_type, **real_config(twin.facts)))
    module.tie_weights()
    counted = count_weights(model_id, twin.task)
    assert counted is not None
    assert counted.total == sum(weight.numel() for weight in module.parameters())
    linear = {id(part.weight): part.weight for part in module.modules() if isinstance(part, torch.nn.Linear)}
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    matrices = sum(weight.numel() for weight in linear.values() if id(weight) not in embeddings)
    assert counted.linear + counted.head == matrices


@pytest.mark.parametrize(
    ("model_id", "published"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("microsoft/phi-4", 14_659_507_200),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("google/gemma-2-2b", 2_614_341_888),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("openai/whisper-large-v3", 1_543_490_560),
        ("openai/whisper-large-v3-turbo", 808_878_080),
        ("openai/clip-vit-base-patch32", 151_277_313),
        ("google-bert/bert-base-multilingual-cased", 177_974_523),
        ("CompVis/stable-diffusion-v1-4", 1_066_235_307),
        ("stabilityai/stable-diffusion-xl-base-1.0", 3_468_837_867),
    ],
)
def test_published_counts(model_id: str, published: int) -> None:
    task = "text-to-image" if model_id in DRAWING else architecture_of(model_id).task
    counted = count_weights(model_id, task)
    assert counted is not None
    assert counted.total == published


def test_tied_heads_count_once() -> None:
    tied, untied = (count_weights(id_, "text-generation") for id_ in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"))
    assert tied is not None and tied.tied and tied.head == 0
    assert untied is not None and not untied.tied and untied.head == untied.embedding


@pytest.mark.parametrize("model_id", ["nobody/knows-this", "facebook/wav2vec2-base", "somebody/llama-like-thing"])
def test_nothing_is_guessed(model_id: str) -> None:
    assert count_weights(model_id, "text-generation") is None


def test_no_pattern_of_the_table_hides_a_later_one() -> None:
    alternatives = str.maketrans({"*": "x"})
    for twin in KNOWN:
        name = twin.pattern.replace("[13]", "3").replace("[56]", "6").translate(alternatives)
        assert architecture_of(name).pattern == twin.pattern
