"""Large models that compute in fp32 from weights that stay in half precision."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.models import mapped_weights, torch_source
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_mapped, load_to_run, load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from tests.conftest import ApplyPass

IDS = torch.arange(5, 37).view(1, 32)


def in_half(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, folder / "source")
    module = load_torch(source).to(torch.bfloat16)
    module.save_pretrained(source.folder)
    return source


@pytest.mark.parametrize(
    "model_id",
    [
        "meta-llama/Llama-3.2-1B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "microsoft/Phi-3-mini-4k-instruct",
        "google/gemma-3-1b-it",  # its embedding multiplies by a buffer
    ],
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


@pytest.mark.parametrize(
    ("model_id", "options"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {"bits": 4, "lm_head": True, "embeds": True}),  # one matrix
        ("microsoft/Phi-3-mini-4k-instruct", {"bits": 8, "sym": True, "lm_head": True, "embeds": True}),
        ("Qwen/Qwen2.5-0.5B-Instruct", {"bits": 4}),
        ("google/gemma-3-1b-it", {"bits": 8, "lm_head": True, "embeds": True}),
    ],
)
def test_products_and_lookups_read_codes(
    model_id: str, options: dict[str, Any], tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = apply_pass("Rtn", in_half(model_id, tmp_path), group_size=32, **options)
    assert load_mapped(quantised) is None
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(mapped_weights, "_CODES_AT_ONCE", 2**10)
    mapped = load_mapped(quantised)
    assert mapped is not None
    linear = mapped.get_submodule("model.layers.0.self_attn.o_proj")
    assert linear.weight.untyped_storage().nbytes() <= 4  # no weights beside the codes
    with torch.inference_mode():
        expected, found = load_torch(quantised)(IDS).logits, mapped(IDS).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    whole = load_to_run(quantised)  # a pass that goes on needs the values
    assert torch.equal(whole.get_submodule("model.layers.0.self_attn.o_proj").weight,
                       load_torch(quantised).get_submodule("model.layers.0.self_attn.o_proj").weight)  # fmt: skip


def test_weights_in_several_types_keep_their_values(
    tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = apply_pass("Rtn", in_half("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path), group_size=32)
    file = quantised.folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.input_layernorm.weight"
    tensors[name] = torch.linspace(0.9, 1.1, len(tensors[name]))  # as scaled channels leave it
    save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.setattr(torch_source, "LARGE", 0)
    mapped = load_mapped(quantised)
    assert mapped is not None
    assert torch.equal(mapped.get_parameter(name), tensors[name])
    assert mapped.get_parameter("model.norm.weight").dtype == torch.bfloat16


def test_a_model_with_rounded_buffers_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_source, "LARGE", 0)
    module = torch.nn.BatchNorm1d(4).bfloat16()
    assert not mapped_weights.computes_in_fp32(module)
    assert mapped_weights.computes_in_fp32(torch.nn.BatchNorm1d(4))


class Places(torch.nn.Embedding):
    """Looks up places, not what it is given, as several models' embeddings of positions do."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(torch.arange(ids.shape[1]), self.weight)


def test_only_embeddings_of_tokens_are_cut_to_what_is_looked_up() -> None:
    module = Places(9, 4).bfloat16()
    expected = module(IDS[:, :5]).float()
    mapped_weights.widen(module)
    with torch.inference_mode():
        assert torch.equal(module(IDS[:, :5]), expected)


def test_what_is_given_back_keeps_its_values() -> None:
    tensor = torch.randn(300, 700)
    copy = tensor.clone()
    mapped_weights.give_back(tensor)
    mapped_weights.give_back(tensor.T)
    mapped_weights.give_back(tensor[:, 3:9])
    assert torch.equal(tensor, copy)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_pages_of_a_file_that_are_given_back_stay_in_the_cache(tmp_path: Path) -> None:
    torch.randn(1 << 20).numpy().tofile(tmp_path / "weights")
    tensor = torch.from_file(str(tmp_path / "weights"), shared=False, size=1 << 20, dtype=torch.float32)
    tensor.sum()
    held = _pages_held(tensor)
    mapped_weights.give_back(tensor)
    assert held > 1000
    assert _pages_held(tensor) < 8
    with (tmp_path / "weights").open("rb") as file:
        try:
            assert os.preadv(file.fileno(), [bytearray(1 << 20)], 1 << 20, os.RWF_NOWAIT) == 1 << 20
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # not every file system tells
                raise


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_written_into_a_mapped_file_is_kept_when_it_is_given_back(tmp_path: Path, shared: bool) -> None:
    np.zeros(1 << 18, np.float32).tofile(tmp_path / "weights")
    tensor = torch.from_file(str(tmp_path / "weights"), shared=shared, size=1 << 18, dtype=torch.float32)
    tensor[70_000:90_000] = 7
    mapped_weights.give_back(tensor)
    assert int((tensor == 7).sum()) == 20_000
    assert int((tensor == 0).sum()) == (1 << 18) - 20_000


def _pages_held(tensor: torch.Tensor) -> int:
    """Returns how many pages of a tensor this process maps."""
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(tensor.data_ptr() // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pages.read(tensor.nbytes // mmap.PAGESIZE * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum())
