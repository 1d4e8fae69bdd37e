"""Rotated models compute what they computed before, or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from runner.errors import InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models import sharded_weights, torch_source
from runner.models.handle import ModelHandle
from runner.models.sharded_weights import mapped_weights
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes import residual_stream
from runner.passes.export.tiny_twin import make_twin
from runner.passes.quantize.hadamard import hadamard, rotation
from runner.passes.quantize.quarot import QuaRotOptions, rotate
from tests.conftest import ApplyPass

IDS = torch.arange(40, 64)[None]


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def with_gains_and_biases(model: ModelHandle) -> Any:
    """Returns the model with parameters away from the ones and zeros that a fresh one has."""
    module = load_torch(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += torch.rand(parameter.shape, generator=random)
    return module


@pytest.mark.parametrize(
    "model_id",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen3-0.6B",
        "microsoft/Phi-4-mini-instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "HuggingFaceTB/SmolLM3-3B",
    ],
)
def test_the_function_stays(model_id: str, tmp_path: Path):
    module = with_gains_and_biases(twin_of(model_id, tmp_path))
    embedding = module.get_input_embeddings().weight.clone()
    with torch.inference_mode():
        before = module(IDS).logits
        rotate(module, "hadamard", 0)
        after = module(IDS).logits
    assert (after - before).norm() < 1e-4 * before.norm()
    assert not torch.allclose(module.get_input_embeddings().weight, embedding)
    assert not module.config.tie_word_embeddings


def test_a_rotated_folder_builds(tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of("microsoft/Phi-4-mini-instruct", tmp_path / "source")
    rotated = apply_pass("QuaRot", source, rotate_mode="random")
    chosen = apply_pass("SelectiveMixedPrecision", rotated, algorithm="k_quant_mixed")
    rounded = apply_pass("Rtn", chosen, group_size=32, sym=True, lm_head=True, embeds=True)
    built = apply_pass("ModelBuilder", rounded, precision="int4")
    assert Parity(source, 2).compare(rotated)["outputs"]["logits"]["cosine"] > 0.99999
    assert Parity(rounded, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


@pytest.mark.parametrize("model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_a_large_model_in_half_precision_is_rotated_as_in_fp32(
    model_id: str, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    source = twin_of(model_id, tmp_path / "source")
    with_gains_and_biases(source).to(torch.bfloat16).save_pretrained(source.folder)
    copied = mapped_weights(apply_pass("QuaRot", source).folder)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    monkeypatch.setattr(residual_stream, "_LARGE", 0)
    monkeypatch.setattr(residual_stream, "_AT_ONCE", 2**10)
    made = apply_pass("QuaRot", source)
    in_place = mapped_weights(made.folder)
    assert len(list(made.folder.glob("*.safetensors"))) > 2
    assert in_place.keys() == copied.keys()
    for name, one in in_place.items():
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, copied[name], rtol=1e-6, atol=1e-7)  # sums in another order
    assert not list(tmp_path.glob("scratch-*/*"))
    assert Parity(source, 2).compare(made)["outputs"]["logits"]["cosine"] > 0.99999


def test_outliers_are_spread(tiny_llama: ModelHandle):
    module = load_torch(tiny_llama)
    with torch.inference_mode():
        module.get_input_embeddings().weight[:, 3] *= 50
        rotate(module, "hadamard", 0)
        weight = module.get_input_embeddings().weight
    sizes = weight.square().mean(0)
    assert sizes.max() < 2 * sizes.mean()


def test_the_seed_decides(tiny_llama: ModelHandle):
    rotated = []
    for seed in (0, 0, 1):
        module = load_torch(tiny_llama)
        with torch.inference_mode():
            rotate(module, "hadamard", seed)
        rotated.append(module.lm_head.weight)
    assert torch.equal(rotated[0], rotated[1])
    assert not torch.equal(rotated[0], rotated[2])


@pytest.mark.parametrize(
    ("model_id", "why"),
    [
        ("google/gemma-3-1b-it", "post_feedforward_layernorm"),
        ("allenai/Olmo-3-7B-Instruct", "post_feedforward_layernorm"),
    ],
)
def test_norms_behind_a_block_are_refused(model_id: str, why: str, tmp_path: Path, apply_pass: ApplyPass):
    with pytest.raises(InvalidRecipe, match=why):
        apply_pass("QuaRot", twin_of(model_id, tmp_path / "source"))


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 64, 76, 96, 576, 896, 960, 1536])
def test_hadamard_matrices(size: int):
    matrix = hadamard(size)
    assert matrix is not None
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 14, 15, 64])
@pytest.mark.parametrize("mode", ["hadamard", "random"])
def test_rotations_are_orthogonal(size: int, mode: Any):
    matrix = rotation(size, mode, torch.Generator().manual_seed(0))
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)


def test_bad_options_are_errors(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    with pytest.raises(ValidationError):
        QuaRotOptions.model_validate({"rotate_mode": "hadamart"})
    quantized = apply_pass("Rtn", tiny_llama, group_size=32)
    with pytest.raises(InvalidRecipe, match="quantised already"):
        apply_pass("QuaRot", quantized)
