"""What passes would refuse of a model is told when the run is planned, before anything is fetched or started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.errors import InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.outline import Outline, outline_of, outline_of_id
from runner.models.quantized_checkpoint import Scheme
from runner.passes.quantize.weight_only import foresee_rows

Plan = Callable[..., tuple[int, str]]
SMOLLM2, PHI3 = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "microsoft/Phi-3-mini-4k-instruct",
)  # rows of 576 and 1536; of 3072 and 8192


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Plans passes on a model, by its id or folder; gives the exit code and what was told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(model: str, *passes: Mapping[str, Any], dry: bool = True) -> tuple[int, str]:
        steps = {f"step{at}": step for at, step in enumerate(passes)}
        source = {"type": "HfModel", "model_path": model, "task": "text-generation"}
        (tmp_path / "config.json").write_text(json.dumps({"input_model": source, "passes": steps}, indent=1))
        code = run_command(["run", "--config", "config.json", *(["--dry-run"] if dry else ["--offline"])])
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split())

    return run


GPTQ, RTN, AWQ = ({"type": name, "bits": 4} for name in ("Gptq", "Rtn", "Awq"))
BUILD = {"type": "ModelBuilder", "precision": "int4"}


@pytest.mark.parametrize("step", [GPTQ, RTN, AWQ], ids=lambda step: step["type"])
def test_groups_that_do_not_divide_the_rows(plan: Plan, step: dict[str, Any]) -> None:
    code, told = plan(SMOLLM2, {**step, "group_size": 128}, BUILD)
    assert code == 2
    assert "group-size" in told
    assert "group_size 128 does not divide the 576 weights of a row of model.layers.0.self_attn.q_proj" in told
    assert "choose 64 or 32 or 16" in told
    assert "config.json:" in told
    assert plan(SMOLLM2, {**step, "group_size": 64}, BUILD)[0] == 0
    assert plan(SMOLLM2, {**step, "group_size": -1}, BUILD)[0] == 0
    assert plan(PHI3, {**step, "group_size": 128}, BUILD)[0] == 0


def test_one_group_for_a_row_that_no_group_can_have() -> None:
    with pytest.raises(InvalidRecipe, match=r"the 200 weights of a row of wide are no multiple of 16"):
        foresee_rows({"wide": Scheme(4, -1, False)}, Outline({}, {"wide": 200}))
    foresee_rows({"wide": Scheme(4, -1, False)}, Outline({}, {"wide": 208}))


def test_nothing_is_fetched_or_started_for_what_is_refused(plan: Plan, tmp_path: Path) -> None:
    code, told = plan(SMOLLM2, {**GPTQ, "group_size": 256}, dry=False)
    assert code == 2
    assert "model-not-here" not in told
    assert not (tmp_path / "hub").exists()
    assert not (tmp_path / "cache" / "logs").exists()


def test_overrides_count_and_so_does_what_earlier_steps_have_done(plan: Plan) -> None:
    layers = {r"re:model\.layers\..*": {"group_size": 64}}
    assert plan(SMOLLM2, {**GPTQ, "group_size": 128, "overrides": layers})[0] == 0
    assert plan(SMOLLM2, {**GPTQ, "group_size": 128, "overrides": {next(iter(layers)): {"group_size": 256}}})[0] == 2
    head = {**RTN, "bits": 8, "group_size": 128, "lm_head": True}
    code, told = plan(SMOLLM2, {**GPTQ, "group_size": 64}, head)
    assert code == 2
    assert "a row of lm_head" in told
    assert "q_proj" not in told
    assert plan(SMOLLM2, {**GPTQ, "group_size": 64}, {**head, "group_size": 32})[0] == 0


def test_a_choice_by_harm_looks_at_its_groups(plan: Plan) -> None:
    choice = {"type": "SelectiveMixedPrecision", "algorithm": "snr", "ratio": 0.9, "group_size": 32}
    assert plan(SMOLLM2, {**choice, "high_group_size": 128}, {**RTN, "group_size": 32})[0] == 2
    assert plan(SMOLLM2, choice, {**RTN, "group_size": 32})[0] == 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"algo_config": "k_quant", "block_size": 64}, "odd-blocks"),
        ({"algo_config": "rtn", "is_symmetric": False, "block_size": 64}, "odd-blocks"),
        ({"is_symmetric": False, "block_size": 64}, "odd-blocks"),  # with rtn, so that head and embedding share
        ({"is_symmetric": False, "algo_config": "default"}, "bad-combination"),
        ({"precision": "fp32", "block_size": 32}, "not-quantised"),
    ],
)
def test_what_the_builder_would_refuse(plan: Plan, options: dict[str, Any], rule: str) -> None:
    code, told = plan(SMOLLM2, {**BUILD, **options})
    assert code == 2
    assert f"{rule}: ModelBuilder:" in told


@pytest.mark.parametrize("options", [{"block_size": 64}, {"algo_config": "k_quant"}, {"algo_config": "hqq", "block_size": 64}])
def test_what_the_builder_takes(plan: Plan, options: dict[str, Any]) -> None:
    assert plan(SMOLLM2, {**BUILD, **options})[0] == 0


def test_codes_are_not_built_in_floating_point(plan: Plan) -> None:
    code, told = plan(SMOLLM2, {**GPTQ, "group_size": 32}, {"type": "ModelBuilder", "precision": "fp32"})
    assert code == 2
    assert "quantised already, and precision fp32 is not" in told


def test_a_long_rotation_without_its_factors_is_refused(plan: Plan, tmp_path: Path, tiny_llama: ModelHandle) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "rope_parameters": {"rope_type": "longrope"}}
    (folder / "config.json").write_text(json.dumps(config))
    code, told = plan(str(folder), BUILD)
    assert code == 2
    assert (
        "rotation-not-served: ModelBuilder: the rope_scaling of this model is of type longrope and has no short_factor" in told
    )


def test_an_outline_of_files_is_that_of_the_facts(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from runner.models.twin import architecture_of

    for model_id in (SMOLLM2, PHI3, "Qwen/Qwen3-0.6B"):
        known = architecture_of(model_id)
        facts = {name: value for name, value in known.facts.items() if not name.endswith("_token_id")}
        small = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 160, "head_dim": None}
        small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None, "layer_types": None}
        config = AutoConfig.for_model(known.model_type, **{**facts, **small, "head_dim": 24})
        folder = tmp_path / known.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        found, told = outline_of(ModelHandle("hf", folder)), outline_of_id(model_id)
        assert found is not None and told is not None
        kinds = {name.replace("layers.1.", "layers.0.") for name in found.rows}
        assert {name for name in told.rows if "layers." not in name or "layers.0." in name} <= kinds
        assert {found.rows[f"model.layers.1.{name}"] for name in ("self_attn.o_proj", "mlp.down_proj")} == {96, 160}
