"""Architectures that the builder lacks or builds otherwise: the graph computes what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
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
        "baidu/ERNIE-4.5-0.3B-PT",
        "openai/gpt-oss-20b",
    ],
)
def test_logits_are_those_of_transformers(model_id: str, tmp_path: Path, apply_pass: Callable[..., ModelHandle]) -> None:
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "twin")
    built = apply_pass("ModelBuilder", source, precision="fp32")
    compared = Parity(source, 2).compare(built)
    assert compared["outputs"]["logits"]["max_abs_diff"] < 0.02
    assert compared["outputs"]["logits"]["top1_agreement"] > 0.98


def test_experts_in_floating_point_are_quantised(tmp_path: Path, apply_pass: Callable[..., ModelHandle]) -> None:
    twin = architecture_of("openai/gpt-oss-20b")
    source = make_twin(twin, twin.task, tmp_path / "twin")
    built = apply_pass("ModelBuilder", source, precision="int4")
    nodes = onnx.load(built.path, load_external_data=False).graph.node
    assert sum(node.op_type == "QMoE" for node in nodes) == 2
    assert Parity(source, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.9
