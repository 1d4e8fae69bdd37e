"""Choosing modules for more bits, and the passes that follow the choice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from runner.cli import run_command
from runner.errors import InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models import torch_source
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme, quantization_of, read_checkpoint
from runner.models.torch_source import load_to_run, load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.passes.quantize import sensitivity
from runner.passes.quantize.grid import round_to_nearest
from runner.passes.quantize.selective_mixed_precision import SelectiveMixedPrecisionOptions
from runner.passes.quantize.sensitivity import Rivals, divergence_sensitivity, weight_sensitivity
from tests.conftest import ApplyPass

DOWN = "model.layers.0.mlp.down_proj"
CALIBRATION = [{"input_ids": np.random.default_rng(0).integers(5, 30, (4, 128))}]


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def bits_of(quantized: ModelHandle) -> dict[str, int]:
    return {name: matrix.scheme.bits for name, matrix in read_checkpoint(quantized.folder).matrices.items()}


def test_the_head_of_a_tied_model_takes_its_embedding_along(tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path / "source")
    chosen = apply_pass("SelectiveMixedPrecision", source, algorithm="k_quant_last")
    assert chosen.attributes["mixed_precision_info"] == {
        "default": {"bits": 4},
        "overrides": {"lm_head": {"bits": 8}, "model.embed_tokens": {"bits": 8}},
    }
    assert torch.equal(load_torch(chosen).get_parameter("lm_head.weight"), load_torch(source).get_parameter("lm_head.weight"))


@pytest.mark.parametrize(
    ("algorithm", "projections"),
    [("k_quant_down", {"down_proj"}), ("k_quant_mixed", {"q_proj", "k_proj", "v_proj", "down_proj"})],
)
def test_places_of_k_quants(tiny_llama: ModelHandle, apply_pass: ApplyPass, algorithm: str, projections: set[str]):
    chosen = apply_pass("SelectiveMixedPrecision", tiny_llama, algorithm=algorithm, bits=4, high_bits=8)
    names = set(chosen.attributes["mixed_precision_info"]["overrides"])
    blocks = {"down_proj": "mlp"}
    expected = {f"model.layers.0.{blocks.get(one, 'self_attn')}.{one}" for one in projections}  # of two layers, only the first
    assert names == {"lm_head", *expected}


@pytest.mark.parametrize(
    ("later", "name"),
    [
        ("high_precision_lm_head", "k_quant_last"),
        ("high_precision_mlp_down", "k_quant_down"),
        ("high_precision_mlp_down_qkv", "k_quant_mixed"),
    ],
)
def test_later_names_of_places(later: str, name: str):
    assert SelectiveMixedPrecisionOptions(algorithm=later).algorithm == name


@pytest.mark.parametrize("algorithm", ["kld_gradient", "snr", "snr_relative", "iqe", "iqe_relative"])
def test_harm_chooses_up_to_the_ratio(tiny_llama: ModelHandle, apply_pass: ApplyPass, algorithm: str):
    chosen = apply_pass(
        "SelectiveMixedPrecision",
        tiny_llama,
        data=CALIBRATION,
        data_config="calibration",
        algorithm=algorithm,
        ratio=0.65,
        group_size=32,
        high_sym=True,
    )
    info = chosen.attributes["mixed_precision_info"]
    assert info["default"] == {"bits": 4, "group_size": 32, "symmetric": False}
    assert {tuple(one.items()) for one in info["overrides"].values()} == {
        (("bits", 8), ("group_size", 32), ("symmetric", True))
    }
    weights = dict(load_torch(tiny_llama).named_parameters())
    high = sum(weights[f"{name}.weight"].numel() for name in info["overrides"])
    total = sum(one.numel() for name, one in weights.items() if "proj" in name or "lm_head" in name)
    assert 0.35 <= high / total < 0.6
    for at in (0, 1):
        together = [f"model.layers.{at}.self_attn.{one}_proj" in info["overrides"] for one in "qkv"]
        assert len(set(together)) == 1


def test_the_divergence_falls_as_foretold(tiny_llama: ModelHandle):
    """The gradient's estimate for a small step is the measured fall of the divergence."""
    ids = torch.tensor(CALIBRATION[0]["input_ids"][:1])
    with torch.inference_mode():
        expected = load_torch(tiny_llama)(ids).logits[0].log_softmax(-1)

    def divergence(module: torch.nn.Module) -> float:
        with torch.inference_mode():
            found = module(ids).logits[0].log_softmax(-1)
        return float(torch.nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True))

    schemes = {name: Rivals(Scheme(4, 32, False), Scheme(8, 32, False)) for name in (DOWN, "model.layers.1.mlp.up_proj")}
    quantized = load_torch(tiny_llama)
    high = round_to_nearest(quantized.get_submodule(DOWN).weight, schemes[DOWN].high).dequantized()
    foretold = divergence_sensitivity(quantized, schemes, [ids])[DOWN]
    assert divergence(quantized) < 1e-9  # the model is what it was
    with torch.no_grad():
        for name, rivals in schemes.items():
            weight = quantized.get_submodule(name).weight
            weight.copy_(round_to_nearest(weight, rivals.low).dequantized())
    before, step = divergence(quantized), 0.02
    with torch.no_grad():
        weight = quantized.get_submodule(DOWN).weight
        weight += step * (high - weight)
    assert before - divergence(quantized) == pytest.approx(step * foretold, rel=0.1, abs=1e-7)


def falls_at_once(module: Any, schemes: dict[str, Rivals], windows: list[torch.Tensor]) -> dict[str, float]:
    """The same figures from the gradients of the whole model."""
    with torch.no_grad():
        answers = [module(ids).logits[0].log_softmax(-1).half().float() for ids in windows]
    module.requires_grad_(False)
    head = module.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    differences = {}
    for name, rivals in schemes.items():
        weight = module.get_submodule(name).weight
        low, high = (round_to_nearest(weight, one).dequantized() for one in (rivals.low, rivals.high))
        weight.data, differences[name] = low, (low - high).bfloat16()
        weight.requires_grad_()
    for ids, expected in zip(windows, answers, strict=True):
        found = module(ids).logits[0].log_softmax(-1)
        torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True).div(len(found)).backward()
    slopes = {name: module.get_submodule(name).weight.grad for name in schemes}
    return {name: float((slopes[name] * one).sum()) / len(windows) for name, one in differences.items()}


@pytest.mark.parametrize(
    "model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "google/gemma-3-1b-it"]
)
@pytest.mark.parametrize("mapped", [False, True])
def test_layer_by_layer_the_falls_are_those_of_the_whole_model(
    model_id: str, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "source")
    load_torch(source).to(torch.bfloat16).save_pretrained(source.folder)
    windows = list(torch.tensor(CALIBRATION[0]["input_ids"][:2]).split(1))
    whole = load_torch(source)
    rivals = Rivals(Scheme(4, 32, False), Scheme(8, 32, True))
    schemes = {name: rivals for name, one in whole.named_modules() if isinstance(one, torch.nn.Linear)}
    assert "lm_head" in schemes
    expected = falls_at_once(whole, schemes, windows)
    monkeypatch.setattr(torch_source, "LARGE", 0 if mapped else 10**12)
    monkeypatch.setattr(sensitivity, "_AT_ONCE", 2**10)  # some rows of the head at a time
    module = load_to_run(source)
    before = {name: one.clone() for name, one in module.state_dict().items()}
    found = divergence_sensitivity(module, schemes, windows, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert not list(tmp_path.glob("*.pages"))


@pytest.mark.parametrize("algorithm", ["kld_gradient", "snr", "snr_relative", "iqe", "iqe_relative"])
def test_a_large_model_in_half_precision_is_judged_as_in_fp32(
    algorithm: str, tmp_path: Path, apply_pass: ApplyPass, monkeypatch: pytest.MonkeyPatch
):
    twin = architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    source = make_twin(twin, twin.task, tmp_path / "source")
    load_torch(source).to(torch.bfloat16).save_pretrained(source.folder)
    options = {"algorithm": algorithm, "ratio": 0.6, "group_size": 32, "data_config": "calibration", "data": CALIBRATION}
    copied = apply_pass("SelectiveMixedPrecision", source, **options)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    in_place = apply_pass("SelectiveMixedPrecision", source, memory=1, **options)
    assert in_place.attributes == copied.attributes
    assert any("hidden states go to the disk" in text for text in apply_pass.said) == (algorithm == "kld_gradient")


def test_outliers_show_in_the_weights():
    schemes = Rivals(Scheme(4, 32, False), Scheme(8, 32, False))
    even = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    uneven = even.clone()
    uneven[:, ::32] *= 30
    assert weight_sensitivity([uneven], schemes, "iqe") > weight_sensitivity([even], schemes, "iqe")
    assert weight_sensitivity([even], schemes, "snr_relative") > 10


def test_options_overrule_the_choice_where_they_speak(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    info = {"default": {"bits": 8, "group_size": 16}, "overrides": {DOWN: {"bits": 8}, "re:.*q_proj": {"symmetric": True}}}
    chosen = tiny_llama.with_attributes(mixed_precision_info=info)
    matrices = read_checkpoint(apply_pass("Rtn", chosen, bits=4, overrides={DOWN: {"group_size": 64}}).folder).matrices
    assert matrices[DOWN].scheme == Scheme(8, 64, False)
    assert matrices["model.layers.1.self_attn.q_proj"].scheme == Scheme(4, 16, True)
    assert matrices["model.layers.1.mlp.down_proj"].scheme == Scheme(4, 16, False)


def test_a_run_quantises_as_the_step_before_has_chosen(
    tiny_llama: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    choice = {"type": "SelectiveMixedPrecision", "algorithm": "snr", "ratio": 0.65, "group_size": 32, "sym": True}
    for quantise, group_size in (({"type": "Rtn"}, 32), ({"type": "Rtn", "group_size": 16}, 16)):
        config = {
            "input_model": {"type": "HfModel", "model_path": str(tiny_llama.folder), "task": "text-generation"},
            "passes": {"choose": choice, "quantise": quantise},
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        output = tmp_path / f"made-{group_size}"
        assert run_command(["run", "--config", str(tmp_path / "config.json"), "--output-dir", str(output)]) == 0
        schemes = {matrix.scheme for matrix in read_checkpoint(output).matrices.values()}
        assert Scheme(4, group_size, True) in schemes


def test_one_group_for_a_row(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    quantized = apply_pass("Gptq", tiny_llama, data=CALIBRATION, data_config="calibration", group_size=-1, lm_head=True)
    told = quantization_of(quantized.folder)
    assert told is not None
    assert (told["group_size"], told["overrides"]) == (-1, None)
    matrices = read_checkpoint(quantized.folder).matrices
    assert all(matrix.scales.shape[1] == 1 for matrix in matrices.values())
    built = apply_pass("ModelBuilder", quantized, precision="int4")
    assert Parity(quantized, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


@pytest.mark.parametrize("model_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "microsoft/Phi-3-mini-4k-instruct"])
def test_the_whole_chain_builds(model_id: str, tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of(model_id, tmp_path / "source")
    chosen = apply_pass(
        "SelectiveMixedPrecision", source, data=CALIBRATION, data_config="calibration", algorithm="kld_gradient", ratio=0.65
    )
    solved = apply_pass("Gptq", chosen, data=CALIBRATION, data_config="calibration", bits=4, group_size=128)
    assert set(bits_of(solved).values()) == {4, 8}
    rounded = apply_pass("Rtn", solved, bits=8, lm_head=True, embeds=True, overrides={"lm_head": {"bits": 8}})
    built = apply_pass("ModelBuilder", rounded, precision="int4")
    assert Parity(rounded, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


def test_without_rounding_the_head_stays_in_floating_point(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    chosen = apply_pass("SelectiveMixedPrecision", tiny_llama, algorithm="k_quant_mixed")
    solved = apply_pass("Gptq", chosen, data=CALIBRATION, data_config="calibration", group_size=32)
    built = apply_pass("ModelBuilder", solved, precision="int4")
    assert Parity(solved, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999
    nodes = onnx.load(built.folder / "model.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in nodes if node.name.startswith("/lm_head/MatMul")] == ["MatMul"]


def test_query_key_and_value_may_differ(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    overrides = {"re:.*v_proj": {"bits": 8}, "re:.*0.self_attn.k_proj": {"group_size": 16}, "re:.*q_proj": {"symmetric": True}}
    quantized = apply_pass("Rtn", tiny_llama, group_size=32, lm_head=True, overrides=overrides)
    built = apply_pass("ModelBuilder", quantized, precision="int4")
    assert Parity(quantized, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


def test_bad_choices_are_errors(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    with pytest.raises(ValidationError, match="needs ratio"):
        SelectiveMixedPrecisionOptions.model_validate({"algorithm": "kld_gradient"})
    with pytest.raises(ValidationError):
        SelectiveMixedPrecisionOptions.model_validate({"algorithm": "k_quant_first"})
    with pytest.raises(InvalidRecipe, match=r"mixed_precision_info\.default\.bits"):
        apply_pass("Rtn", tiny_llama.with_attributes(mixed_precision_info={"default": {"bits": 5}}))
    quantized = apply_pass("Rtn", tiny_llama, group_size=32)
    with pytest.raises(InvalidRecipe, match="quantised already"):
        apply_pass("SelectiveMixedPrecision", quantized, algorithm="k_quant_last")
