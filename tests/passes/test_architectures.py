"""Architectures that the builder lacks or builds otherwise: the graph computes what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

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


@pytest.mark.parametrize("rope", [None, "type", "rope_type"])
@pytest.mark.parametrize("trained", [32, 128])
def test_a_phi_3_is_built_by_its_rotation(
    rope: str | None, trained: int, tmp_path: Path, apply_pass: Callable[..., ModelHandle]
) -> None:
    """Whether it was trained on its whole context, of 128 tokens, or not; whatever the rotation calls its type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    twin = architecture_of("microsoft/Phi-3-mini-4k-instruct")
    source = make_twin(twin, twin.task, tmp_path / "twin")
    path = source.folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"max_position_embeddings": 128, "original_max_position_embeddings": trained, "sliding_window": None}
    if rope:
        short = [1.0 + at / 8 for at in range(config["hidden_size"] // config["num_attention_heads"] // 2)]
        named = {"rope_type": "longrope", "type": "longrope"}
        config["rope_parameters"] |= {**named, "short_factor": short, "long_factor": [2 * one for one in short]}
        del config["rope_parameters"]["type" if rope == "rope_type" else "rope_type"]
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.folder)).save_pretrained(source.folder)
    if rope == "rope_type":  # transformers may have written both names
        config = json.loads(path.read_text())
        config["rope_parameters"].pop("type", None)
        path.write_text(json.dumps(config))
    built = apply_pass("ModelBuilder", source, precision="fp32")
    compared = Parity(source, 2).compare(built)["outputs"]
    assert compared["logits"]["max_abs_diff"] < 0.02
    assert compared["logits_while_decoding"]["max_abs_diff"] < 0.02
