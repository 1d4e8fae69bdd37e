"""SparseGPT and SliceGPT on small models."""

from pathlib import Path
from typing import Any

import numpy as np
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
from runner.passes.export.tiny_twin import make_twin
from runner.passes.sparsify.slicegpt import SliceGptOptions
from runner.passes.sparsify.sparsegpt import SparseGptOptions, inverse_factor, prune
from tests.conftest import ApplyPass


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def ids(most: int = 200, rows: int = 4) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).integers(5, most, (rows, 128)))


def text(most: int = 200) -> list[dict[str, np.ndarray]]:
    return [{"input_ids": ids(most).numpy()}]


def logits(model: ModelHandle, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load_torch(model)(tokens, use_cache=False).logits
    return found


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A GPT-2, whose linear layers keep their weights transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return ModelHandle("hf", folder, None, "text-generation", {"model_type": "gpt2"})


# --- SparseGPT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.5, (2, 4)])
def test_products_change_less_than_with_the_smallest_weights_gone(sparsity: Any):
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=random) * torch.logspace(-1, 1, 64)[:, None]
    inputs, weight = torch.randn(1024, 64, generator=random) @ mix, torch.randn(64, 48, generator=random)
    pruned = prune(weight, inverse_factor(inputs.T @ inputs, 0.01), sparsity, blocksize=32)
    smallest = weight.abs() < weight.abs().median()
    assert (pruned == 0).float().mean() == 0.5

    def error(changed: torch.Tensor) -> float:
        return float((inputs @ (changed - weight)).square().mean())

    assert error(pruned) < 0.5 * error(weight.masked_fill(smallest, 0))


def test_two_of_four_in_every_row_with_transposed_weights(tiny_gpt2: ModelHandle, apply_pass: ApplyPass):
    pruned = apply_pass("SparseGPT", tiny_gpt2, data=text(60), data_config="text", sparsity=[2, 4])
    layer = load_torch(pruned).transformer.h[1]
    for weight in (layer.attn.c_attn.weight.T, layer.attn.c_proj.weight.T, layer.mlp.c_fc.weight.T, layer.mlp.c_proj.weight.T):
        assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
    assert "50.0% of" in apply_pass.said[-1]  # type: ignore[attr-defined]


def test_columns_behind_the_last_whole_group_lose_their_share():
    upper = inverse_factor(torch.eye(6), 0.01)
    pruned = prune(torch.randn(6, 8), upper, (2, 4))
    assert ((pruned[:4] == 0).sum(0) == 2).all()
    assert ((pruned[4:] == 0).sum(0) == 1).all()


def test_only_what_is_asked_for_is_pruned(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    options = {"sparsity": 0.5, "min_layer": 1, "layer_name_filter": ["mlp"]}
    module = load_torch(apply_pass("SparseGPT", tiny_llama, data=text(30), data_config="text", **options))
    zeros = {name: float((one.weight == 0).float().mean()) for name, one in module.named_modules() if "_proj" in name}
    assert {name for name, share in zeros.items() if share} == {
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    with pytest.raises(InvalidRecipe, match="no weights to prune"):
        apply_pass("SparseGPT", tiny_llama, data=text(30), data_config="text", sparsity=0.5, layer_name_filter="nothing")


@pytest.mark.parametrize("sparsity", [1.0, -0.1, [4, 4], [0, 4], [2], "half"])
def test_no_sparsity(sparsity: Any):
    with pytest.raises(ValidationError):
        SparseGptOptions.model_validate({"sparsity": sparsity})


@pytest.mark.parametrize("most", [None, 1])
def test_a_large_model_in_half_precision_is_pruned_as_in_fp32(
    most: int | None, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    source = twin_of("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path / "source")
    load_torch(source).to(torch.bfloat16).save_pretrained(source.folder)
    options = {"data": text(), "data_config": "text", "sparsity": 0.5, "max_layer": most}
    copied = mapped_weights(apply_pass("SparseGPT", source, **options).folder)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    made = apply_pass("SparseGPT", source, memory=1, **options)
    in_place = mapped_weights(made.folder)
    assert len(list(made.folder.glob("*.safetensors"))) > 2
    assert in_place.keys() == copied.keys()
    for name, one in in_place.items():
        assert one.dtype == torch.bfloat16
        assert ((one == 0) == (copied[name] == 0)).float().mean() > 0.99, name  # sums in another order
        torch.testing.assert_close(
            one[one != 0].float().norm(), copied[name][copied[name] != 0].float().norm(), rtol=1e-2, atol=0
        )
    assert load_torch(made).config.tie_word_embeddings


# --- SliceGPT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_id",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen3-0.6B",
        "microsoft/Phi-3-mini-4k-instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
    ],
)
def test_a_rotation_alone_keeps_the_function(model_id: str, tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of(model_id, tmp_path / "source")
    rotated = apply_pass("SliceGPT", source, data=text(), calibration_data_config="text")
    torch.testing.assert_close(logits(rotated, ids()), logits(source, ids()), rtol=1e-3, atol=1e-3)


def test_a_narrower_model_loads_and_is_better_than_one_with_columns_dropped(tmp_path: Path, apply_pass: ApplyPass):
    source = _with_low_rank_states(tmp_path / "source")
    sliced = apply_pass("SliceGPT", source, data=text(60), calibration_data_config="text", sparsity=0.25)
    config = load_torch(sliced).config
    assert (config.hidden_size, config.head_dim) == (48, 16)
    wanted = logits(source, ids(60)).log_softmax(-1)
    found = logits(sliced, ids(60)).log_softmax(-1)
    module = load_torch(source)
    with torch.inference_mode():
        module.model.embed_tokens.weight[:, 48:] = 0
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight[48:] = 0
            layer.mlp.down_proj.weight[48:] = 0
        dropped = module(ids(60), use_cache=False).logits.log_softmax(-1)

    def divergence(other: torch.Tensor) -> float:
        return float((wanted.exp() * (wanted - other)).sum(-1).mean())

    assert divergence(found) < 0.3 * divergence(dropped)


def _with_low_rank_states(folder: Path) -> ModelHandle:
    """A Llama whose hidden states lie mostly in half of their directions, as those of trained models do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=2, eos_token_id=3, tie_word_embeddings=True,
    )  # fmt: skip
    module = LlamaForCausalLM(config)
    mix = (
        torch.linalg.qr(torch.randn(64, 64)).Q
        @ torch.diag(torch.logspace(0.5, -2, 64))
        @ torch.linalg.qr(torch.randn(64, 64)).Q
    )
    with torch.no_grad():
        module.model.embed_tokens.weight.copy_(torch.randn(64, 64) @ mix)
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.copy_(mix.T @ torch.randn(64, 64) / 8)
            layer.mlp.down_proj.weight.copy_(mix.T @ torch.randn(64, 128) / 11)
    module.save_pretrained(folder)
    return ModelHandle("hf", folder, None, "text-generation", {"model_type": "llama"})


def test_a_sliced_model_builds_and_computes_the_same(tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path / "source")
    sliced = apply_pass("SliceGPT", source, data=text(), calibration_data_config="text", sparsity=0.25, round_interval=32)
    built = apply_pass("ModelBuilder", sliced, precision="fp32")
    assert Parity(sliced, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.9999


def test_architectures_that_a_rotation_does_not_pass_are_refused(tiny_gpt2: ModelHandle, tmp_path: Path, apply_pass: ApplyPass):
    gemma = twin_of("google/gemma-3-1b-it", tmp_path / "gemma")
    for model in (tiny_gpt2, gemma):
        with pytest.raises(InvalidRecipe, match="cannot be rotated"):
            apply_pass("SliceGPT", model, data=text(60), calibration_data_config="text", sparsity=0.25)


def test_something_must_stay(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    with pytest.raises(InvalidRecipe, match="leaves no multiple of 32"):
        apply_pass("SliceGPT", tiny_llama, sparsity=0.9, round_interval=32)
    with pytest.raises(ValidationError):
        SliceGptOptions.model_validate({"sparsity": 1.0})
