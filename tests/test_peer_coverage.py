from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "peer_coverage.py"
SYSTEM = {"type": "LocalSystem", "accelerators": [{"device": "npu", "execution_providers": ["QNNExecutionProvider"]}]}


def write(folder: Path, name: str, passes: dict[str, Any], **more: Any) -> None:
    model = {"type": "ONNXModel", "model_path": "made/elsewhere.onnx"}
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"input_model": model, "passes": passes, **more}))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_coverage", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peer_coverage", module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    write(folder, "one/cpu/fine.json", {"p": {"type": "OnnxPeepholeOptimizer"}})
    write(folder, "one/cpu/vendor.json", {"p": {"type": "OpenVINOConversion"}})
    write(folder, "two/wrong.json", {"p": {"type": "OnnxPeepholeOptimiser"}})
    write(folder, "two/npu.json", {"p": {"type": "OnnxPeepholeOptimizer"}}, target=SYSTEM)
    (folder / "two" / "other.json").write_text('{"name": "no configuration"}')
    return folder


def test_finds_configurations_and_those_of_other_runners(script: ModuleType, tree: Path) -> None:
    found = {config.name: config.elsewhere for config in script.find_configs(tree)}
    assert found == {"one/cpu/fine.json": False, "one/cpu/vendor.json": False, "two/npu.json": True, "two/wrong.json": False}
    assert [config.name for config in script.find_configs(tree, "*/cpu/f*")] == ["one/cpu/fine.json"]


def test_counts_plans_and_keeps_results(
    script: ModuleType,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.chdir(tmp_path)
    arguments = [tree.name, "--no-smoke", "--results", str(results)]
    assert script.main(arguments) == 0
    told = capsys.readouterr().out
    kept = [json.loads(line) for line in results.read_text().splitlines()]
    assert {one["name"]: one["state"] for one in kept} == {
        "one/cpu/fine.json": "done",
        "one/cpu/vendor.json": "refused",
        "two/wrong.json": "failed",
    }
    assert "33.3%" in told
    assert "OnnxPeepholeOptimizer" in told
    assert script.main(arguments) == 0
    assert len(results.read_text().splitlines()) == len(kept), "what is known is not done again"
