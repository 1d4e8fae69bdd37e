"""The runner from Python, with tiny twins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runner
from runner.errors import UsageError

RECIPE = "all-minilm-l6-v2/cpu-int8-dynamic"


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RECIPE_CATALOG", str(Path(__file__).resolve().parents[1] / "recipes"))


def test_a_recipe_is_run_and_measured(tmp_path: Path) -> None:
    recipe = runner.load_recipe(RECIPE, output=tmp_path / "made", smoke=True, offline=True)
    assert recipe.name == RECIPE
    assert "cpu-fp32" in recipe.variants
    said: list[str] = []
    made = runner.run(recipe, say=said.append)
    assert (made.folder / "model.onnx").is_file()
    assert made.bytes > 0
    assert said
    said.clear()
    assert runner.run(recipe, say=said.append).cached
    assert "quantize: cached" in said
    measured = runner.benchmark(made)
    assert measured.values["cosine"] > 0.9
    assert measured.ratios["latency"] > 0


def test_a_model_is_optimised(tmp_path: Path) -> None:
    made = runner.optimize(
        "sentence-transformers/all-MiniLM-L6-v2", output=tmp_path / "made", precision="int8", smoke=True, offline=True
    )
    assert made.recipe_name == "all-minilm-l6-v2"
    assert (made.recipe_folder / "olive_config.json").is_file()
    assert {one.what for one in made.decisions} >= {"recipe", "target", "precision"}


def test_options_are_laid_over_a_recipe() -> None:
    recipe = runner.load_recipe(RECIPE, overrides={"passes.quantize.per_channel": False}, smoke=True, offline=True)
    assert recipe.config.passes["quantize"].options.per_channel is False
    with pytest.raises(TypeError, match="load_recipe"):
        runner.run(recipe, offline=True)


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="all-minilm-l6-v2"):
        runner.load_recipe("all-minilm-l6")


def test_the_interface_imports_no_ml_library() -> None:
    script = "import sys, runner; runner.load_recipe; print([n for n in ('torch', 'transformers', 'onnx') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
