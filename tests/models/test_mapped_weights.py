"""Large models that compute in fp32 from weights that stay in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.models import mapped_weights, torch_source
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_mapped, load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

IDS = torch.arange(5, 37).view(1, 32)


def in_half(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, folder / "source")
    module = load_torch(source).to(torch.bfloat16)
    module.save_pretrained(source.folder)
    return source


@pytest.mark.parametrize(
    "model_id", ["meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "microsoft/Phi-3-mini-4k-instruct"]
)
def test_the_outputs_are_those_of_a_model_in_fp32(model_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_half(model_id, tmp_path)
    assert load_mapped(source) is None  # small models are copied
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(mapped_weights, "_AT_ONCE", 2**10)
    mapped = load_mapped(source)
    assert mapped is not None
    assert next(mapped.parameters()).dtype == torch.bfloat16
    with torch.inference_mode():
        expected, found = load_torch(source)(IDS).logits, mapped(IDS).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert next(mapped.parameters()).dtype == torch.bfloat16  # nothing is kept wide


def test_a_model_with_rounded_buffers_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_source, "LARGE", 0)
    module = torch.nn.BatchNorm1d(4).bfloat16()
    assert not mapped_weights.computes_in_fp32(module)
    assert mapped_weights.computes_in_fp32(torch.nn.BatchNorm1d(4))


def test_what_is_given_back_keeps_its_values() -> None:
    tensor = torch.randn(300, 700)
    copy = tensor.clone()
    mapped_weights.give_back(tensor)
    mapped_weights.give_back(tensor.T)
    mapped_weights.give_back(tensor[:, 3:9])
    assert torch.equal(tensor, copy)
