"""Awq on small models."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from runner.errors import InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models import torch_source
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import quantization_of, read_checkpoint
from runner.models.sharded_weights import mapped_weights
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.passes.layer_walk import walk_layers
from runner.passes.quantize.awq import AwqOptions
from runner.passes.quantize.channel_scaling import find_channels
from tests.conftest import ApplyPass

FAMILIES = {  # channels that can be scaled in a layer: after two norms, before the projections of attention and feed-forward
    "HuggingFaceTB/SmolLM2-135M-Instruct": 4,
    "mistralai/Mistral-7B-Instruct-v0.3": 4,
    "Qwen/Qwen2.5-0.5B-Instruct": 4,
    "Qwen/Qwen3-0.6B": 4,
    "microsoft/Phi-3-mini-4k-instruct": 4,
    "google/gemma-2-2b-it": 4,
    "google/gemma-3-1b-it": 4,
}


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def text(most: int = 200) -> list[dict[str, np.ndarray]]:
    return [{"input_ids": np.random.default_rng(0).integers(5, most, (4, 128))}]


def logits(model: ModelHandle, most: int = 200) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load_torch(model)(torch.tensor(text(most)[0]["input_ids"]), use_cache=False).logits
    return found


@pytest.fixture(scope="session")
def uneven_llama(tiny_llama: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A Llama whose norms let a few channels through ten times as strongly as others, as those of trained models do."""
    module = load_torch(tiny_llama)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name:
                weight.copy_(10 ** (torch.rand(weight.shape, generator=random).pow(3) * 1.5))
            elif "proj" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) / weight.shape[1] ** 0.5)
    folder = tmp_path_factory.mktemp("uneven")
    module.save_pretrained(folder)
    return ModelHandle("hf", folder, None, "text-generation", {"model_type": "llama"})


@pytest.mark.parametrize("model_id", FAMILIES)
def test_scaling_alone_keeps_the_function(model_id: str, tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of(model_id, tmp_path / "source")
    module = load_torch(source)
    with torch.inference_mode():
        for layer in walk_layers(module, [torch.tensor(text()[0]["input_ids"])]):
            assert len(find_channels(layer)[0]) == FAMILIES[model_id]
    scaled = apply_pass("Awq", source, data=text(), data_config="text", group_size=32, export_compatible=True)
    assert quantization_of(scaled.folder) is None
    before, after = module.state_dict(), load_torch(scaled).state_dict()
    assert [name for name in before if "norm" in name and not torch.equal(before[name], after[name])]
    torch.testing.assert_close(logits(scaled), logits(source), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_logits_err_less_than_those_of_rounding(symmetric: bool, uneven_llama: ModelHandle, apply_pass: ApplyPass):
    given = {"group_size": 32, "sym": symmetric}
    scaled = apply_pass("Awq", uneven_llama, data=text(30), data_config="text", **given)
    rounded = apply_pass("Rtn", uneven_llama, **given)
    wanted = logits(uneven_llama, 30)
    assert (logits(scaled, 30) - wanted).square().mean() < 0.8 * (logits(rounded, 30) - wanted).square().mean()


def test_gptq_goes_on_from_the_scales(uneven_llama: ModelHandle, apply_pass: ApplyPass):
    scaled = apply_pass("Awq", uneven_llama, data=text(30), data_config="text", group_size=32, export_compatible=True)
    both = apply_pass("Gptq", scaled, data=text(30), data_config="text", group_size=32)
    assert len(read_checkpoint(both.folder).matrices) == 2 * 7


def test_the_genai_model_computes_what_the_checkpoint_holds(tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path / "source")
    quantized = apply_pass("Awq", source, data=text(), data_config="text", group_size=32)
    quantized = apply_pass("Rtn", quantized, bits=8, group_size=32, lm_head=True, embeds=True)
    built = apply_pass("ModelBuilder", quantized, precision="int4")
    assert Parity(quantized, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


def test_modules_stay_in_floating_point_and_the_head_becomes_codes(uneven_llama: ModelHandle, apply_pass: ApplyPass):
    quantized = apply_pass(
        "Awq", uneven_llama, data=text(30), data_config="text", group_size=32, lm_head=True,
        modules_to_not_convert=["layers.0.mlp"],
    )  # fmt: skip
    names = set(read_checkpoint(quantized.folder).matrices)
    assert "lm_head" in names
    assert "model.layers.1.mlp.up_proj" in names
    assert not [name for name in names if "layers.0.mlp" in name]


def test_olives_spellings():
    assert AwqOptions.model_validate({"zero_point": False}).sym
    assert not AwqOptions.model_validate({"zero_point": True}).sym
    with pytest.raises(ValidationError, match="contradict"):
        AwqOptions.model_validate({"zero_point": True, "sym": True})
    assert AwqOptions.renamed == {"w_bit": "bits", "q_group_size": "group_size"}


def test_a_model_without_decoder_layers_is_refused(tiny_masked_bert: ModelHandle, apply_pass: ApplyPass):
    with pytest.raises(InvalidRecipe, match="language model"):
        apply_pass("Awq", tiny_masked_bert, data=text(30), data_config="text", group_size=32)


@pytest.mark.parametrize("lm_head", [False, True])
def test_a_large_model_in_half_precision_is_quantised_as_in_fp32(
    lm_head: bool, uneven_llama: ModelHandle, apply_pass: ApplyPass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(uneven_llama.folder, tmp_path / "half")
    load_torch(uneven_llama).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = replace(uneven_llama, folder=tmp_path / "half")
    options = {"data": text(30), "data_config": "text", "bits": 4, "group_size": 32, "lm_head": lm_head}
    copied = read_checkpoint(apply_pass("Awq", half, **options).folder)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    in_place = read_checkpoint(apply_pass("Awq", half, **options).folder)
    assert in_place.matrices.keys() == copied.matrices.keys()
    alike = [(one.codes() == copied.matrices[name].codes()).float().mean() for name, one in in_place.matrices.items()]
    assert min(alike) > 0.99  # sums in another order
    for name, one in in_place.floats.items():
        torch.testing.assert_close(one.float(), copied.floats[name].float(), rtol=1e-4, atol=1e-5)
    assert in_place.floats["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert in_place.floats["model.layers.1.input_layernorm.weight"].dtype == torch.float32  # scaled


def halved(model_id: str, folder: Path) -> ModelHandle:
    """Returns a model in bf16 whose biases are not zero."""
    source = twin_of(model_id, folder)
    module = load_torch(source)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=random))
    module.to(torch.bfloat16).save_pretrained(folder)
    return source


def test_biases_of_a_large_model_are_scaled_with_their_channels(
    apply_pass: ApplyPass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = halved("Qwen/Qwen2.5-0.5B-Instruct", tmp_path / "half")
    options = {"data": text(), "data_config": "text", "bits": 8, "group_size": 32}
    copied = apply_pass("Awq", half, **options)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    in_place = apply_pass("Awq", half, **options)
    one, other = (read_checkpoint(made.folder).floats for made in (in_place, copied))
    biases = [name for name in other if name.endswith("bias")]
    assert biases
    for name in biases:
        torch.testing.assert_close(one[name].float(), other[name].float(), rtol=1e-4, atol=1e-5)


def test_a_large_model_is_scaled_as_in_fp32_and_written_in_its_own_type(
    apply_pass: ApplyPass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = halved("Qwen/Qwen2.5-0.5B-Instruct", tmp_path / "half")
    options = {"data": text(), "data_config": "text", "group_size": 32, "export_compatible": True}
    copied = apply_pass("Awq", half, **options)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    in_place = apply_pass("Awq", half, **options)
    one, other = (mapped_weights(made.folder) for made in (in_place, copied))
    assert one.keys() == other.keys()
    assert {weight.dtype for weight in one.values()} == {torch.bfloat16}
    for name, weight in one.items():
        torch.testing.assert_close(weight.float(), other[name].float(), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(logits(in_place), logits(copied), rtol=0.02, atol=0.02)
