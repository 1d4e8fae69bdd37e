"""A dry run plans what this machine cannot run; what is wrong with the configuration itself still stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.targets.target import device_missing, target_named

BUILD = {"m": {"type": "ModelBuilder", "precision": "fp16"}}
CONVERT = {"convert": {"type": "OnnxConversion"}}
CUDA = {"type": "LocalSystem", "accelerators": [{"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}]}
Plan = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Plans a configuration; gives the exit code, the plan and what was told on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(content: dict[str, Any], *flags: str, dry: bool = True) -> tuple[int, dict[str, Any], str]:
        (tmp_path / "config.json").write_text(json.dumps(content))
        flags = ("--dry-run", "--json", *flags) if dry else flags
        code = run_command(["run", "--config", "config.json", *flags])
        told = capsys.readouterr()
        error = json.loads(told.err.splitlines()[-1])["error"]["message"] + "\n" if dry and code else told.err
        return code, json.loads(told.out) if told.out.startswith("{") else {}, error

    return run


def hub(**more: Any) -> dict[str, Any]:
    return {"input_model": {"type": "HfModel", "model_path": "Org/Model"}, **more}


@pytest.mark.skipif(device_missing(target_named("cuda")) is None, reason="there is a GPU")
class TestDevice:
    def test_a_model_for_a_device_that_is_not_here_is_planned(self, plan: Plan) -> None:
        code, told, _ = plan(hub(passes=BUILD, target=CUDA))
        assert (code, told["target"]) == (0, "cuda")
        assert any("CUDAExecutionProvider" in note for note in told["notes"])

    def test_but_not_run(self, plan: Plan) -> None:
        code, _, told = plan(hub(passes=BUILD, target=CUDA), "--offline", dry=False)
        assert code == 1
        assert "target-unavailable" in told


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"type": "PyTorchModel", "model_script": "code.py", "model_loader": "load"}, "code.py"),
        ({"type": "ONNXModel", "model_path": "made/by/another.onnx"}, "made/by/another.onnx"),
        ({"type": "HfModel", "model_path": "<MODEL_PATH>"}, "<MODEL_PATH>"),
        ({"type": "HfModel", "model_path": "./not/here"}, "./not/here"),
    ],
)
def test_a_source_that_is_not_here_is_a_note(plan: Plan, model: dict[str, Any], words: str) -> None:
    passes = {"fp16": {"type": "OnnxFloatToFloat16"}} if model["type"] == "ONNXModel" else CONVERT
    code, told, _ = plan({"input_model": model, "passes": passes})
    assert code == 0
    assert any(words in note for note in told["notes"])
    code, _, error = plan({"input_model": model, "passes": passes}, "--trust", "--offline", dry=False)
    assert code == 1
    assert words in error


def test_a_path_that_was_typed_must_exist(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "models" / "tuned").mkdir(parents=True)
    for flags in (["--model-path", "./models/tunde"], ["--set", "input_model.model_path=./models/tunde"]):
        code, _, dry = plan(hub(passes=CONVERT), *flags)
        assert code == 1
        assert "model-not-found: there is no folder './models/tunde'" in dry
        assert "did you mean 'models/tuned'?" in dry
        assert plan(hub(passes=CONVERT), *flags, dry=False)[::2] == (1, dry)
    graph = {"input_model": {"type": "ONNXModel", "model_path": "a.onnx"}, "passes": {"half": {"type": "OnnxFloatToFloat16"}}}
    assert plan(graph)[0] == 0
    assert plan(graph, "--model-path", "b.onnx")[0] == 1
    code, told, _ = plan(hub(passes=CONVERT), "--model-path", "Org/Other", "--offline")
    assert (code, "Org/Other" in " ".join(told["notes"])) == (0, True)


def test_scripts_of_data_are_notes(plan: Plan) -> None:
    data = {"name": "inputs", "type": "DataContainer", "user_script": "data.py", "load_dataset_config": {"type": "mine"}}
    passes = {**CONVERT, "quantize": {"type": "OnnxStaticQuantization", "data_config": "inputs"}}
    code, told, _ = plan(hub(passes=passes, data_configs=[data]))
    assert code == 0
    assert any("data.py" in note for note in told["notes"])
    assert any("--trust" in note for note in told["notes"])
    assert [step["fingerprint"] for step in told["steps"]] == [None, None]


def test_all_problems_of_the_configuration_are_told_at_once(plan: Plan) -> None:
    passes = {"a": {"type": "OnnxConversoin"}, "b": {"type": "OnnxConversion", "target_opsit": 20}}
    code, _, told = plan({"input_model": {"type": "ONNXModel", "model_path": "x.onnx"}, "passes": passes})
    assert code == 2
    assert "OnnxConversion'" in told
    assert "target_opset" in told


def test_steps_that_do_not_fit_are_no_note(plan: Plan) -> None:
    code, _, told = plan({"input_model": {"type": "ONNXModel", "model_path": "x.onnx"}, "passes": CONVERT})
    assert code == 2
    assert "steps-do-not-fit" in told


def test_another_runners_provider_is_named(plan: Plan) -> None:
    system = {"type": "LocalSystem", "accelerators": [{"device": "gpu", "execution_providers": ["WebGpuExecutionProvider"]}]}
    code, _, told = plan(hub(passes=BUILD, target=system))
    assert code == 2
    assert "WebGpuExecutionProvider" in told
    assert "another runner" in told


@pytest.mark.parametrize("kind", ["PythonEnvironment", "Docker", "AzureML"])
def test_other_machines_are_read_as_this_one(plan: Plan, kind: str) -> None:
    code, told, _ = plan(hub(passes=CONVERT, systems={"there": {"type": kind}}, host="there"))
    assert code == 0
    assert any(kind in note for note in told["notes"])


def test_a_stand_in_takes_the_place_of_a_graph_that_is_not_here(plan: Plan) -> None:
    model = {"type": "ONNXModel", "model_path": "models/vision_encoder/model.onnx"}
    code, told, _ = plan({"input_model": model, "passes": {"fp16": {"type": "OnnxFloatToFloat16"}}}, "--smoke")
    assert code == 0
    assert [step["pass"] for step in told["steps"]] == ["StandInGraph", "OnnxFloatToFloat16"]


def test_a_family_stands_in_with_a_note(plan: Plan) -> None:
    model = {"type": "HfModel", "model_path": "Somebody/Qwen3-77B-tuned"}
    code, told, _ = plan({"input_model": model, "passes": {"m": {"type": "ModelBuilder", "precision": "int4"}}}, "--smoke")
    assert code == 0
    assert any("Qwen/Qwen3" in note for note in told["notes"])
    code, _, error = plan(hub(passes=CONVERT), "--smoke")
    assert code == 2
    assert "no-tiny-twin" in error


class TestComponents:
    """Which components of a pipeline a step is for."""

    @staticmethod
    def drawing(components: Any, step: str = "quantize", **model: Any) -> dict[str, Any]:
        passes: dict[str, Any] = {"convert": {"type": "OnnxConversion"}, "quantize": {"type": "OnnxDynamicQuantization"}}
        passes[step]["components"] = components
        return {"input_model": {"type": "DiffusersModel", "model_path": "Org/Draws", **model}, "passes": passes}

    @pytest.mark.parametrize(
        ("components", "words"),
        [
            ({"unett": {}}, "did you mean 'unet'?"),
            (["unet", "text_encoder_2"], "the pipeline has no component 'text_encoder_2'"),
            (["vaes_*"], "'vaes_*'"),
            ({"unet": {"per_chanel": True}}, "did you mean 'per_channel'?"),
            ({"unet": {"weight_type": "float7"}}, "weight_type"),
            ({"unet": None}, "or false"),
            (["unet", 1], "1 is none"),
            ("unet", "a list of names"),
        ],
    )
    def test_what_is_wrong_is_told_at_its_line(self, plan: Plan, components: Any, words: str) -> None:
        code, _, told = plan(self.drawing(components, model_variant="sd"))
        assert code == 2
        assert words in told
        assert "config.json:1" in told

    @pytest.mark.parametrize("components", [["text_encoder*"], {"vae_*": False}, {"unet": {"precision": "uint8"}}])
    def test_names_patterns_and_options_that_differ(self, plan: Plan, components: Any) -> None:
        assert plan(self.drawing(components, model_variant="sd"))[0] == 0
        assert plan(self.drawing(components))[0] == 0

    def test_no_component_can_be_left_out_of_the_export(self, plan: Plan) -> None:
        code, _, told = plan(self.drawing(["unet"], "convert", model_variant="sd"))
        assert code == 2
        assert "leaves out text_encoder, vae_encoder, vae_decoder" in told

    def test_a_model_of_one_graph_has_none(self, plan: Plan) -> None:
        code, _, told = plan(hub(passes={"convert": {"type": "OnnxConversion", "components": ["unet"]}}))
        assert code == 2
        assert "no-components" in told

    def test_they_are_part_of_what_decides_the_result(self, plan: Plan) -> None:
        keys = [
            plan(self.drawing(components, model_variant="sd"), "--smoke")[1]["steps"][-1]["fingerprint"]
            for components in ({}, {"unet": {"per_channel": False}}, {"unet": {"per_channel": True}}, {"vae_decoder": {}})
        ]
        assert len(set(keys)) == 4
