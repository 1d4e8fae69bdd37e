"""`recipe quantize`, `export`, `tune` and `run-pass` on small models: the model, the recipe beside it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass
from runner.passes.table import get
from tests.conftest import ApplyPass

SCRIPT = """
import torch

def _model_loader(model_path=None):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()

def _io_config(model=None):
    shapes = {"input_names": ["x"], "input_shapes": [[1, 8]], "input_types": ["float32"], "output_names": ["y"]}
    return {**shapes, "dynamic_axes": {"x": {"0": "batch"}, "y": {"0": "batch"}}}
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_catalogue: None) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECIPE_CATALOG", str(Path.cwd() / "recipes"))
    monkeypatch.chdir(tmp_path)


def _config(folder: str) -> dict[str, object]:
    config: dict[str, object] = json.loads(Path(folder, "olive_config.json").read_text())
    return config


def test_quantize_makes_a_model_and_a_recipe_that_makes_it_again(
    tiny_llama: ModelHandle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["quantize", "-m", str(tiny_llama.folder), "--algorithm", "rtn", "--precision", "int8", "-o", "made", "--offline"]
    assert run_command(asked) == 0
    assert Path("made/genai_config.json").is_file() and Path("made/receipt.json").is_file()
    assert "quantises as it builds" in capsys.readouterr().out
    assert run_command(["run", "made-recipe"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert run_command(["run", "--config", "made-recipe/olive_config.json"]) == 0
    assert run_command(["run-pass", "--pass-name", "OnnxPeepholeOptimizer", "-m", "made", "-o", "tidy"]) == 0
    assert Path("tidy/genai_config.json").is_file()


def test_a_dry_run_writes_the_recipe_only(tiny_bert: ModelHandle, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--algorithm", "static", "--act-precision", "int8", "-o", "made", "--offline", "--dry_run"]
    assert run_command(["quantize", "--model-name-or-path", str(tiny_bert.folder), *flags]) == 0
    assert "to do" in capsys.readouterr().out
    assert Path("made-recipe/sample_data/calibration.txt").is_file() and not Path("made").exists()
    assert run_command(["quantize", "-m", str(tiny_bert.folder), *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["passes"]["quantize"]["activation_type"] == "int8"
    assert {"what": "algorithm", "choice": "static", "why": "asked for"} in told["decisions"]


def test_a_recipe_that_was_changed_by_hand_is_not_written_over(
    tiny_bert: ModelHandle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["quantize", "-m", str(tiny_bert.folder), "-o", "made", "--offline", "--dry-run"]
    assert run_command(asked) == 0
    config = Path("made-recipe/olive_config.json")
    config.write_text(config.read_text().replace("true", "false"))
    assert run_command(asked) == 2
    assert "recipe-changed" in capsys.readouterr().err


def test_export_a_script_with_fixed_axes_and_tune_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    Path("script.py").write_text(SCRIPT)
    asked = ["export", "--model_script", "script.py", "-o", "graph", "--opset", "17", "--fixed", "batch=2"]
    assert run_command(asked) == 0
    graph = onnx.load("graph/model.onnx")
    assert graph.opset_import[0].version == 17
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    capsys.readouterr()
    tune = ["tune-session-params", "-m", "graph/model.onnx", "-o", "tuned", "--seconds", "0.1"]
    assert run_command([*tune, "--intra_thread_num_list", "1", "2", "--opt_level_list", "1,99", "--io_bind"]) == 0
    printed = capsys.readouterr()
    assert "the default" in printed.out and "the winner" in printed.out and "--io_bind does nothing" in printed.err
    tried = json.loads(Path("tuned/session_options.json").read_text())["trials"]
    assert len({json.dumps(one["options"], sort_keys=True) for one in tried}) == len(tried)
    assert {one["options"]["intra_op_num_threads"] for one in tried} >= {1, 2}
    assert any(one["options"].get("graph_optimization_level") == 1 for one in tried)


def test_older_guides_switches_may_have_a_value(tiny_llama: ModelHandle) -> None:
    asked = ["capture-onnx-graph", "-m", str(tiny_llama.folder), "-o", "made", "--use_ort_genai", "True", "--dry-run"]
    assert run_command([*asked, "--exclude_embeds", "False", "--precision", "int4", "--offline"]) == 0
    build = _config("made-recipe")["passes"]["build"]  # type: ignore[index]
    assert build["type"] == "ModelBuilder" and build["exclude_embeds"] is False
    plain = ["export", "-m", str(tiny_llama.folder), "-o", "plain", "--no-dynamo", "--offline", "--dry-run"]
    assert run_command(plain) == 0
    convert = _config("plain-recipe")["passes"]["convert"]  # type: ignore[index]
    assert convert == {"type": "OnnxConversion", "use_dynamo_exporter": False}


def test_run_pass_takes_options_from_json_and_over_it(exported_bert: ModelHandle, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run-pass", "--pass-name", "onnxblockwisertnquantization", "-m", str(exported_bert.path), "-o", "made"]
    assert run_command([*asked, "--pass-config", '{"bits": 8, "block_size": 32}', "--set", "block_size=16"]) == 0
    step = json.loads(Path("made/receipt.json").read_text())["steps"][-1]
    assert step["pass"] == "OnnxBlockWiseRtnQuantization"
    assert (step["options"]["bits"], step["options"]["block_size"]) == (8, 16)
    capsys.readouterr()
    assert run_command(["run-pass", "--list-passes"]) == 0
    assert "OnnxPeepholeOptimizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "rule", "told"),
    [
        (["run-pass", "--pass-name", "OnnxPeepholeOptimiser", "-m", "GRAPH"], "unknown-pass", "OnnxPeepholeOptimizer"),
        (["run-pass", "--pass-name", "Gptq", "-m", "GRAPH"], "wrong-kind", "exported from"),
        (["run-pass", "--pass-name", "OnnxPeepholeOptimizer", "-m", "BERT", "--offline"], "wrong-kind", "recipe export"),
        (["run-pass", "--pass-name", "OnnxPeepholeOptimizer", "-m", "GRAPH", "--set", "fixd=1"], "unknown-option", ""),
        (
            ["run-pass", "--pass-name", "OnnxPeepholeOptimizer", "-m", "GRAPH", "--pass-config", "bits"],
            "bad-pass-config",
            "JSON",
        ),
        (
            [
                *("run-pass", "--pass-name", "OnnxFloatToFloat16", "-m", "GRAPH"),
                *("--set", "op_block_list=Add", "--set", "force_fp32_ops=Mul"),
            ],
            "option-twice",
            "keep one of them; 'op_block_list' is today's name",
        ),
        (["run-pass", "-m", "GRAPH"], "no-pass", "--list-passes"),
        (["export", "-m", "GRAPH"], "is-a-graph", "recipe quantize"),
        (["export", "-m", "BERT", "--use_model_builder", "--offline"], "not-for-builder", "language and speech"),
        (["export", "-m", "BERT", "--precision", "int4", "--offline"], "not-an-export", "recipe quantize --precision int4"),
        (["export", "-m", "BERT", "--fixed", "batch", "--offline"], "bad-axis", "batch=1"),
        (["export", "-m", "BERT", "--opset", "99", "--offline"], "bad-value", "25"),
        (["tune", "-m", "BERT", "--offline"], "not-a-graph", "recipe export"),
        (["tune", "-m", "GRAPH", "--opt_level_list", "high"], "bad-value", "whole numbers"),
        (["quantize", "-m", "nowhere/at/all"], "model-not-found", "Org/Name"),
        (["quantize", "-m", "GRAPH", "--device", "gpu", "--provider", "CPUExecutionProvider"], "wrong-device", "cpu"),
    ],
)
def test_what_is_refused_says_what_to_do(
    arguments: list[str],
    rule: str,
    told: str,
    exported_bert: ModelHandle,
    tiny_bert: ModelHandle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"GRAPH": str(exported_bert.path), "BERT": str(tiny_bert.folder)}
    assert run_command([names.get(one, one) for one in arguments] + ["-o", "made"]) == 2
    printed = capsys.readouterr().err
    assert rule in printed and told in printed
    assert not Path("made-recipe").exists()


def test_a_generating_folder_is_tuned_in_its_own_configuration(tiny_llama: ModelHandle, apply_pass: ApplyPass) -> None:
    from runner.models.generation import GenerationSession

    built = apply_pass("ModelBuilder", tiny_llama, precision="fp32")
    tuned = apply_pass("OrtSessionParamsTuning", built, seconds=0.1, intra_thread_num_list=[1], spinning_list=[True])
    declared: Pass = get("OrtSessionParamsTuning")
    assert "genai" in declared.takes
    told = json.loads((tuned.folder / "session_options.json").read_text())
    assert told["measured"] == "a token" and len(told["trials"]) >= 2
    session = json.loads((tuned.folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert session.get("intra_op_num_threads") == told["options"].get("intra_op_num_threads")
    logits = [GenerationSession(one.folder, 1, every_position=True).all_logits([2, 5, 6]) for one in (built, tuned)]
    assert (logits[0] == logits[1]).all()
