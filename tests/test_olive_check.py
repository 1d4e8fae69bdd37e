"""The check with Olive, as far as it needs no Olive."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.errors import RunFailed

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
RECIPE = {"input_model": {"type": "HfModel", "model_path": "org/name"}, "passes": {}}


def _script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("olive_check", monkeypatch)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("olive_inside", monkeypatch)


def _answer(*problems: dict[str, Any]) -> dict[str, Any]:
    return {"path": "/somewhere/olive_config.json", "problems": list(problems), "warnings": []}


def test_configurations_are_found_and_other_json_is_not(script: ModuleType, tmp_path: Path) -> None:
    wanted = ["a/olive_config.json", "a/other_name.json", "b/olive_config.cuda-fp16.json"]
    for name in [*wanted, "a/models/m/olive_config.json", "a/results/olive_config.json", ".hidden/olive_config.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(RECIPE))
    (tmp_path / "a" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "a" / "list.json").write_text("[1]")
    (tmp_path / "b" / "olive_config.json").write_text("{no json")
    found = [path.relative_to(tmp_path).as_posix() for path in script.configs_of(str(tmp_path))]
    assert found == sorted([*wanted, "b/olive_config.json"])


def test_words_name_recipes_and_variants(script: ModuleType) -> None:
    recipe = script.configs_of("smollm2-135m-instruct")
    assert {path.parent.name for path in recipe} == {"smollm2-135m-instruct"}
    assert [path.name for path in script.configs_of("smollm2-135m-instruct/cpu-fp32")] == ["olive_config.cpu-fp32.json"]
    assert len(recipe) > 1


def test_an_option_of_this_runner_is_ignored_and_any_other_is_rejected(script: ModuleType) -> None:
    ours = {"where": "tidy", "cause": "...", "unknown": "split_skip_layer_normalization", "pass": "OnnxPeepholeOptimizer"}
    nobodys = {
        "where": "build", "cause": "ModelBuilder has no option 'precison'", "unknown": "precison", "nearest": "precision",
        "pass": "ModelBuilder",
    }  # fmt: skip
    found = script.verdict(_answer(ours, nobodys))
    assert found.ignored == ("tidy: OnnxPeepholeOptimizer.split_skip_layer_normalization",)
    assert found.rejected == ("build: ModelBuilder has no option 'precison' (did you mean 'precision'?)",)


def test_a_pass_that_only_olive_has_declares_nothing_here(script: ModuleType) -> None:
    assert not script.is_ours("OpenVINOConversion", "anything")


def test_what_is_wrong_is_shown_with_its_file_and_counted(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bad = script.verdict(_answer({"where": "", "cause": "ValueError: no"}))
    good = script.verdict(_answer())
    script.show("0.13.0", [bad, good], [script.Run(good.config, None, "generates [1, 2]", 20.0)])
    assert capsys.readouterr().out.splitlines() == [
        "/somewhere/olive_config.json: rejected: ValueError: no",
        "/somewhere/olive_config.json: generates [1, 2] (20 s)",
        "Olive 0.13.0 accepts 1 of 2 configurations",
        "olive run: 1 of 1 gave a model that works",
    ]
    told = script.report("0.13.0", [bad, good], [])
    assert [one["accepted"] for one in json.loads(json.dumps(told))["configs"]] == [False, True]


def test_transformers_4_finds_the_rotary_embedding_where_it_looks(script: ModuleType) -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0}
    older = script.older_config({"dtype": "bfloat16", "rope_parameters": scaled})
    assert (older["torch_dtype"], older["rope_theta"]) == ("bfloat16", 5e5)
    assert older["rope_scaling"] == {"rope_type": "llama3", "factor": 32.0}
    by_layer = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    older = script.older_config({"rope_parameters": by_layer})
    assert (older["rope_theta"], older["rope_local_base_freq"], "rope_scaling" in older) == (1e6, 1e4, False)


def test_a_twin_takes_the_place_of_the_model(script: ModuleType, tmp_path: Path) -> None:
    config = {**RECIPE, "input_model": {"type": "HfModel", "config": {"model_path": "meta-llama/Llama-3.2-1B"}}}
    prepared = script._with_twin(config, tmp_path / "twins", tmp_path / "output")
    folder = Path(prepared["input_model"]["config"]["model_path"])
    facts = json.loads((folder / "config.json").read_text())
    assert facts["num_hidden_layers"] == 2 and facts["rope_scaling"]["rope_type"] == "llama3"
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert prepared["output_dir"] == str(tmp_path / "output")


def test_only_a_model_of_transformers_has_a_twin(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="this is a ONNXModel"):
        script._with_twin({"input_model": {"type": "ONNXModel", "model_path": "m.onnx"}}, tmp_path, tmp_path)


def test_bad_usage_names_what_is_near(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for word in ("smollm2-135m-instrukt", str(tmp_path)):
        with pytest.raises(SystemExit) as ended:
            script.main([word, "--python", sys.executable])
        assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "smollm2-135m-instruct" in told and f"no configuration in {tmp_path}" in told


def test_names_that_olive_lacks_come_with_the_nearest(inside: ModuleType) -> None:
    found = inside._unknown("build", "precison", ["precision", "search"], "ModelBuilder has no option")
    assert found == {
        "where": "build", "cause": "ModelBuilder has no option 'precison'", "unknown": "precison", "nearest": "precision",
    }  # fmt: skip


def test_warnings_are_kept(inside: ModuleType) -> None:
    logger = logging.getLogger("olive.of.a.test")
    kept = inside.Warnings()
    logger.addHandler(kept)
    logger.warning("field '%s' is already defined", "type")
    logger.info("running")
    assert kept.told == ["field 'type' is already defined"]


def test_several_causes_of_one_error_are_told(inside: ModuleType) -> None:
    from pydantic import BaseModel, ValidationError

    class Options(BaseModel):
        bits: int
        group_size: int

    with pytest.raises(ValidationError) as raised:
        Options.model_validate({"bits": "four"})
    assert [one["where"] for one in inside._causes("gptq", raised.value)] == ["gptq.bits", "gptq.group_size"]
    assert list(inside._causes("", ValueError("no"))) == [{"where": "", "cause": "ValueError: no"}]
