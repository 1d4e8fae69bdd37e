"""Imports point down, and commands that compute nothing import nothing that computes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "runner"

# Lowest first. A package may import its own level and what lies below it.
LEVELS = (
    {"errors"},
    {"recipe"},
    {"data", "models", "targets"},
    {"passes", "evaluation", "templating"},
    {"engine", "bench", "catalog"},
    {"dispatch", "report", "search", "compose", "serving"},
    {"api"},
    {"cli"},
)
RANK = {package: rank for rank, level in enumerate(LEVELS) for package in level}
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai", "onnx_ir", "onnxscript", "numpy", "tokenizers")


def _edges() -> Iterator[tuple[Path, str, str]]:
    """Yields (file, package it lies in, package it imports) for every import of ours, wherever in the file it stands."""
    for path in sorted(RUNNER.rglob("*.py")):
        parts = path.relative_to(RUNNER).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [f"runner.{alias.name}" for alias in node.names] if node.module == "runner" else [node.module]
            for name in names:
                if name.startswith("runner.") and parts[0] != "__main__":
                    yield path, parts[0], name.split(".")[1]


def test_every_package_has_its_level() -> None:
    packages = {path.name for path in RUNNER.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages <= set(RANK)


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}: {package} imports {imported}"
        for path, package, imported in _edges()
        if imported in RANK and package in RANK and RANK[imported] > RANK[package]
    ]
    assert upward == []


def test_packages_of_one_level_do_not_import_one_another_both_ways() -> None:
    beside = {
        (package, imported)
        for _, package, imported in _edges()
        if package != imported and package in RANK and RANK.get(imported) == RANK[package]
    }
    assert [pair for pair in beside if pair[::-1] in beside] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls"],
        ["ls", "--json"],
        ["show", "smollm2-135m-instruct"],
        ["passes", "ls"],
        ["lint"],
        ["render", "--check"],
        ["doctor"],
        ["run", "--help"],
        ["bench", "--help"],
        ["try", "--help"],
        ["optimize", "--help"],
        ["quantize", "--help"],
        ["init", "--help"],
        ["finetune", "--help"],
        ["search", "--help"],
        ["serve", "--help"],
        ["cache", "--help"],
    ],
    ids=" ".join,
)
def test_command_imports_no_ml_library(arguments: list[str]) -> None:
    imported = _imported_by(arguments, ROOT)
    assert [name for name in HEAVY if name in imported] == []


# What only a run needs that has something left to make, fetch, measure or check.
FOR_MORE_THAN_A_LOOK = (
    "psutil",
    "runner.cli.run_plan",
    "runner.data.batches",
    "runner.engine.child",
    "runner.engine.estimate",
    "runner.engine.locked",
    "runner.engine.receipt",
    "runner.engine.work",
    "runner.evaluation.evaluate",
    "runner.evaluation.structure",
    "runner.models.smoke_source",
    "runner.models.twin_table",
    "statistics",
)


def test_a_run_that_has_nothing_to_make_imports_nothing_that_makes(tmp_path: Path) -> None:
    ones = onnx.helper.make_tensor("ones", onnx.TensorProto.FLOAT, [4], [1.0] * 4)
    inputs, outputs = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "ones"], ["y"])], "add", [inputs], [outputs], [ones])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), tmp_path / "add.onnx"
    )
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "add.onnx"},
        "passes": {"tidy": {"type": "OnnxPeepholeOptimizer"}},
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = ["run", "--config", "config.json"]
    first, second = _imported_by(arguments, tmp_path), _imported_by(arguments, tmp_path)
    assert "runner.engine.work" in first
    assert [name for name in (*HEAVY, *FOR_MORE_THAN_A_LOOK) if name in second] == []


def _imported_by(arguments: list[str], folder: Path) -> set[str]:
    """Returns the modules that a command has imported when it is done, in a process of its own."""
    script = (
        "import sys, json\n"
        "from runner.cli import run_command\n"
        f"code = run_command({arguments!r})\n"
        "sys.stdout.flush()\n"
        "print('\\n' + json.dumps([code, list(sys.modules)]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    code, imported = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(imported)
