"""GPTQ on tiny models: its errors, its checkpoint, and the GenAI model made of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from runner.errors import DataUnavailable, InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models import sharded_weights, torch_source
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import QuantizedMatrix, Scheme, pack, quantization_of, read_checkpoint, unpack
from runner.models.sharded_weights import mapped_weights
from runner.models.torch_source import load_in_place, load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.passes.hidden_states import HiddenStates
from runner.passes.quantize.gptq import _ROWS_A_THREAD, GptqOptions, gptq
from runner.passes.quantize.grid import Parts, fit_grid, nearest_codes, over_rows
from runner.passes.table import options_of
from tests.conftest import ApplyPass

FAMILIES = [
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "microsoft/Phi-3-mini-4k-instruct",
    "google/gemma-3-1b-it",
]


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def tokens(most: int = 200) -> list[dict[str, np.ndarray]]:
    """Synthetic calibration data: ids from 5 up to `most`."""
    return [{"input_ids": np.random.default_rng(0).integers(5, most, (4, 128))}]


def inputs_of_unequal_weight(columns: int) -> torch.Tensor:
    """Inputs [tokens, columns] that depend on one another, as those of a layer do."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=random) * torch.logspace(-1, 1, columns)[:, None]
    return torch.randn(2048, columns, generator=random) @ mix


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_products_of_gptq_err_less_than_those_of_rounding(symmetric: bool):
    scheme = Scheme(4, 32, symmetric)
    inputs = inputs_of_unequal_weight(128)
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1))
    scales, zeros = fit_grid(weight, scheme)
    codes = nearest_codes(weight, scales, zeros, scheme.levels)
    rounded = QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte()).dequantized()
    solved = gptq(weight, inputs.T @ inputs, scheme).dequantized()

    def error(quantized: torch.Tensor) -> float:
        return float((inputs @ (quantized - weight).T).square().mean())

    assert error(solved) < 0.5 * error(rounded)


def test_a_singular_hessian_is_damped():
    inputs = torch.ones(16, 64)
    matrix = gptq(torch.randn(8, 64), inputs.T @ inputs, Scheme(4, 32, False))
    assert matrix.dequantized().isfinite().all()


@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (4, 9), (8, 9), (2, 10)])
def test_packing_round_trips(bits: int, columns: int):
    codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, -(-columns * bits // 8))
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("model_id", FAMILIES)
def test_the_genai_model_computes_what_the_checkpoint_holds(model_id: str, tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of(model_id, tmp_path / "source")
    quantized = apply_pass("Gptq", source, data=tokens(), data_config="calibration", group_size=32)
    quantized = apply_pass("Rtn", quantized, bits=8, group_size=32, lm_head=True, embeds=True)
    built = apply_pass("ModelBuilder", quantized, precision="int4", prune_lm_head=True)
    logits = Parity(quantized, 2).compare(built)["outputs"]["logits"]
    assert logits["cosine"] > 0.999
    graph = onnx.load(built.folder / "model.onnx", load_external_data=False).graph
    assert "GatherBlockQuantized" in {node.op_type for node in graph.node}
    assert not [one.name for one in graph.initializer if one.name.endswith(("MatMul.weight", "embed_tokens.weight"))]


@pytest.mark.parametrize("model_id", FAMILIES)
def test_symmetric_codes_build_as_well(model_id: str, tmp_path: Path, apply_pass: ApplyPass):
    source = twin_of(model_id, tmp_path / "source")
    quantized = apply_pass("Gptq", source, data=tokens(), data_config="calibration", group_size=32, sym=True, lm_head=True)
    assert not [name for name in read_checkpoint(quantized.folder).floats if name.endswith("qzeros")]
    built = apply_pass("ModelBuilder", quantized, precision="int4")
    assert Parity(quantized, 2).compare(built)["outputs"]["logits"]["cosine"] > 0.999


def test_the_checkpoint_keeps_names_and_values(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    quantized = apply_pass(
        "Gptq",
        tiny_llama,
        data=tokens(30),
        data_config="calibration",
        group_size=32,
        overrides={"model.layers.0.mlp.down_proj": {"bits": 8}, "re:.*q_proj": {"group_size": 16}},
    )
    told = quantization_of(quantized.folder)
    assert told is not None
    assert told["quant_method"] == "olive"
    assert (told["bits"], told["group_size"], told["symmetric"]) == (4, 32, False)
    assert told["overrides"]["model.layers.0.mlp.down_proj"] == {"bits": 8}
    assert told["overrides"]["model.layers.1.self_attn.q_proj"] == {"group_size": 16}
    matrices = read_checkpoint(quantized.folder).matrices
    assert len(matrices) == 2 * 7
    module = load_torch(quantized)
    for name, matrix in matrices.items():
        assert torch.equal(module.get_submodule(name).weight, matrix.dequantized())
    assert matrices["model.layers.0.mlp.down_proj"].codes().max() > 15


def test_without_data_the_model_writes_its_own(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    quantized = apply_pass("Gptq", tiny_llama, group_size=32)
    assert quantization_of(quantized.folder)


def test_padding_is_no_text(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    padded = [{"input_ids": np.full((4, 128), 7), "attention_mask": np.zeros((4, 128), np.int64)}]
    with pytest.raises(DataUnavailable, match="0 tokens"):
        apply_pass("Gptq", tiny_llama, data=padded, data_config="calibration", group_size=32)


def test_the_older_pass_of_olive_is_this_one():
    (name, options), _ = options_of("GptqQuantizer")
    assert (name, options) == ("Gptq", GptqOptions)
    assert options.retired["true_sequential"]


def test_wrong_options_are_errors(tiny_llama: ModelHandle, apply_pass: ApplyPass):
    with pytest.raises(ValidationError):
        GptqOptions.model_validate({"damp_precent": 0.1})
    with pytest.raises(ValidationError):
        GptqOptions.model_validate({"overrides": {"lm_head": {"bit": 8}}})
    with pytest.raises(InvalidRecipe, match=r"no module 'model\.layers\.0\.mlp\.dwn_proj'"):
        apply_pass("Gptq", tiny_llama, overrides={"model.layers.0.mlp.dwn_proj": {"bits": 8}})
    with pytest.raises(InvalidRecipe, match="choose 64 or 32 or 16"):
        apply_pass("Gptq", tiny_llama, data=tokens(30), data_config="calibration", group_size=256)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_fitted_grid_errs_less_than_the_whole_range(symmetric: bool):
    scheme = Scheme(4, 32, symmetric)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    weight[0] = 0  # a row of nothing
    importance = torch.logspace(-2, 2, 128)

    def error(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        codes = nearest_codes(weight, scales, zeros, scheme.levels)
        back = QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte()).dequantized()
        return ((back - weight).square() * importance).sum(1)

    eight = Scheme(8, 32, symmetric)
    scales, zeros = fit_grid(weight, eight)  # takes the whole range
    ratio = eight.levels / scheme.levels
    whole = error(scales * ratio, torch.full_like(zeros, scheme.middle) if symmetric else (zeros / ratio).round())
    fitted = error(*fit_grid(weight, scheme, importance))
    assert fitted[0] < 1e-6
    assert fitted.sum() < 0.92 * whole.sum()
    flat = error(*fit_grid(weight, scheme))
    assert fitted.sum() < flat.sum()


def test_a_large_model_in_half_precision_is_quantised_as_in_fp32(
    tiny_llama: ModelHandle, apply_pass: ApplyPass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = load_torch(tiny_llama).to(torch.bfloat16)
    shutil.copytree(tiny_llama.folder, tmp_path / "half")
    module.save_pretrained(tmp_path / "half")
    half = replace(tiny_llama, folder=tmp_path / "half")
    options = {"bits": 4, "group_size": 32, "lm_head": True}
    copied = read_checkpoint(apply_pass("Gptq", half, data=tokens(30), data_config="text", **options).folder)
    monkeypatch.setattr(torch_source, "LARGE", 0)
    monkeypatch.setattr(sharded_weights, "_FULL", 20_000)
    made = apply_pass("Gptq", half, data=tokens(30), data_config="text", **options)
    in_place = read_checkpoint(made.folder)
    assert len(list(made.folder.glob("*.safetensors"))) > 2
    assert in_place.matrices.keys() == copied.matrices.keys()
    alike = [(one.codes() == copied.matrices[name].codes()).float().mean() for name, one in in_place.matrices.items()]
    assert min(alike) > 0.99  # sums in another order
    assert {one.dtype for one in in_place.floats.values()} == {torch.bfloat16}
    assert next(load_in_place(half).parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(("rows", "pieces"), [(5, [5]), (960, [960]), (3072, [512] * 6), (40_000, [2500] * 16)])
def test_a_thread_gets_rows_enough_to_be_worth_it(rows: int, pieces: list[int]):
    """On shorter pieces the threads of a machine with many cores wait for one another's calls."""
    got: list[int] = []

    def function(part: torch.Tensor) -> Parts:
        got.append(len(part))
        return part, part, part

    threads = torch.get_num_threads()
    torch.set_num_threads(16)
    try:
        whole, *_ = over_rows(function, torch.arange(rows)[:, None], _ROWS_A_THREAD)
    finally:
        torch.set_num_threads(threads)
    assert got == pieces
    assert torch.equal(whole[:, 0], torch.arange(rows).float())


@pytest.mark.parametrize("name", ["Gptq", "Awq"])
def test_hidden_states_on_the_disk_give_the_same_codes(
    name: str, tiny_llama: ModelHandle, apply_pass: ApplyPass, tmp_path: Path
):
    options = {"bits": 4, "group_size": 32, "data": tokens(30), "data_config": "text"}
    roomy = apply_pass(name, tiny_llama, memory=10**12, **options)
    assert not any("go to the disk" in text for text in apply_pass.said)  # type: ignore[attr-defined]
    short = apply_pass(name, tiny_llama, memory=100_000, **options)
    assert any("go to the disk" in text for text in apply_pass.said)  # type: ignore[attr-defined]
    one, other = mapped_weights(roomy.folder), mapped_weights(short.folder)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(tmp_path.glob("scratch-*/*"))  # nothing is left of them


def test_hidden_states_in_files_are_kept_and_leave_nothing(tmp_path: Path):
    states = HiddenStates(tmp_path)
    given = [torch.randn(2, 5, 7) for _ in range(3)]
    states.extend(given)
    assert len(states) == 3
    assert all(torch.equal(one, other) for one, other in zip(states, given, strict=True))
    assert torch.equal(states[1], given[1])
    assert not list(tmp_path.iterdir())
