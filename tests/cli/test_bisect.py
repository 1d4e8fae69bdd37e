"""`recipe bisect` on a run in which one step really breaks the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runner.cli import run_command

PASSES = {
    "tidy": {"type": "OnnxPeepholeOptimizer"},
    "quantize": {"type": "OnnxDynamicQuantization", "weight_type": "QInt8", "per_channel": False},
    "finish": {"type": "OnnxPeepholeOptimizer"},
}


def write_graph(path: Path, outlier: float) -> None:
    """Two layers; the second has one weight so large that a scale for all of them leaves nothing of the others.

    What that weight is multiplied with is always zero, so in fp32 it makes no difference.
    """
    random = np.random.default_rng(0)
    first = random.standard_normal((16, 32)).astype(np.float32)
    second = random.standard_normal((32, 8)).astype(np.float32)
    first[:, 0] = 0
    second[0, 0] = outlier
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["inner"], "first_layer"),
        helper.make_node("Relu", ["inner"], ["active"], "relu"),
        helper.make_node("MatMul", ["active", "second"], ["y"], "second_layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs `recipe` with words and returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_command(words)
        told = capfd.readouterr()
        return code, told.out, told.err

    return call


def write_config(folder: Path, outlier: float, passes: dict[str, Any] = PASSES) -> str:
    write_graph(folder / "layers.onnx", outlier)
    config = {"input_model": {"type": "ONNXModel", "model_path": "layers.onnx"}, "passes": passes, "output_dir": "made"}
    (folder / "config.json").write_text(json.dumps(config))
    return "config.json"


def test_the_step_that_breaks_is_named_with_its_tensors(run, tmp_path):
    config = write_config(tmp_path, outlier=1e6)
    assert run("run", config)[0] == 0
    code, out, _ = run("bisect", config)
    assert code == 4
    assert "quantize (OnnxDynamicQuantization) is the first step beyond its tolerance" in out
    code, out, _ = run("bisect", config, "--json")
    told = json.loads(out)
    assert (code, told["first"], told["before"]) == (4, "quantize", "tidy")
    assert [step["state"] for step in told["steps"]] == ["within", "beyond", "beyond"]
    assert [step["precision"] for step in told["steps"]] == ["fp32", "int8", "int8"]
    assert told["steps"][1]["outputs"][0]["relative_error"] > 0.5
    names = [tensor["name"] for tensor in told["tensors"]]
    assert "active" not in names  # the first layer is still right
    assert "y" in names
    assert all(tensor["matched"] for tensor in told["tensors"])


def test_the_output_folder_tells_as_much(run, tmp_path):
    assert run("run", write_config(tmp_path, outlier=1e6))[0] == 0
    code, out, _ = run("bisect", "made", "--json")
    assert (code, json.loads(out)["first"]) == (4, "quantize")


def test_a_sound_run_has_no_such_step(run, tmp_path):
    config = write_config(tmp_path, outlier=1.0)
    assert run("run", config)[0] == 0
    code, out, _ = run("bisect", config)
    assert code == 0
    assert "every step is within its tolerance" in out
    code, out, _ = run("bisect", config, "--tolerance", "1e-6", "--json")
    assert (code, json.loads(out)["first"]) == (4, "quantize")


def test_results_that_are_gone_say_how_to_get_them(run, tmp_path):
    config = write_config(tmp_path, outlier=1e6)
    code, out, _ = run("bisect", config)
    assert code == 0
    assert out.count("missing") == 3
    assert f"recipe run {config}" in out


def test_a_source_that_has_moved(run, tmp_path):
    assert run("run", write_config(tmp_path, outlier=1e6))[0] == 0
    (tmp_path / "layers.onnx").rename(tmp_path / "elsewhere.onnx")
    code, _, err = run("bisect", "made")
    assert code == 1
    assert "name the recipe or its configuration" in err
