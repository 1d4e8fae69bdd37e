"""Architectures that the builder lacks or builds otherwise: the graph computes what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.evaluation.parity import Parity
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin


@pytest.mark.parametrize(
    "model_id",
    [
        "allenai/Olmo-3-7B-Instruct",
        "allenai/OLMo-1B-hf",
        "HuggingFaceTB/SmolLM3-3B",
        "mistralai/Ministral-3-3B-Instruct-2512",
        "google/translategemma-4b-it",
        "Qwen/Qwen3.5-2B",
        "openai/whisper-tiny.en",
    ],
)
def test_logits_are_those_of_transformers(model_id: str, tmp_path: Path, apply_pass: Callable[..., ModelHandle]) -> None:
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "twin")
    built = apply_pass("ModelBuilder", source, precision="fp32")
    compared = Parity(source, 2).compare(built)
    assert compared["outputs"]["logits"]["max_abs_diff"] < 0.02
    assert compared["outputs"]["logits"]["top1_agreement"] > 0.98
