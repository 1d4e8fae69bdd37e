"""The runner from Python, with tiny twins."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import runner
from runner.errors import RecipeError, UsageError

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
    with pytest.raises(TypeError, match="takes no further options: give smoke to run"):
        runner.benchmark(made, smoke=True)
    measured = runner.benchmark(made)
    assert measured.values["cosine"] > 0.9
    assert measured.ratios["latency"] > 0
    assert runner.benchmark(made.folder, offline=True).values["cosine"] == pytest.approx(measured.values["cosine"], abs=1e-4)


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


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: runner.benchmark(RECIPE, rounds=-1), "rounds is a whole number from 1 on, not -1"),
        (lambda: runner.benchmark(RECIPE, rounds=2.5), "rounds is"),
        (lambda: runner.benchmark(RECIPE, judged={"batch": 1}), "judged is a runner.compose.contest.Judged"),
        (lambda: runner.run(RECIPE, max_memory="much"), "max_memory is a number of bytes above 0, or a text with a unit"),
        (lambda: runner.run(RECIPE, max_memory=-1), "max_memory"),
        (lambda: runner.run(RECIPE, max_memory=True), "max_memory"),
        (lambda: runner.run(RECIPE, timeout=0), "timeout is a time in seconds above 0"),
        (lambda: runner.load_recipe(RECIPE, overrides=["a"]), "overrides map dotted paths to values"),
        (lambda: runner.load_recipe(RECIPE, overrides={"output_dir": Path()}), "output_dir: a PosixPath cannot stand"),
        (lambda: runner.load_recipe(RECIPE, threads=0), "threads is a whole number from 1 on, not 0"),
        (lambda: runner.optimize("x", threads="2"), "threads is"),
        (lambda: runner.optimize("x", max_memory=[]), "max_memory"),
        (lambda: runner.optimize("x", overrides="a=1"), "overrides map"),
        (lambda: runner.finetune("x", "y", "z", training={"max_steps": 2}), "training is a runner.compose.training.Training"),
        (lambda: runner.finetune("x", "y", "z", threads=True), "threads is"),
        (lambda: runner.finetune("x", "y", "z", max_seq_len=0), "max_seq_len is"),
    ],
)
def test_an_argument_that_is_not_taken_is_told_at_once(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)) as refused:
        call()
    assert refused.value.problems[0].rule == "bad-argument"
    assert refused.value.problems[0].remedy


@pytest.mark.parametrize("limit", ["5MB", 5_000_000])
def test_a_limit_of_memory_is_a_number_of_bytes_or_a_text(tmp_path: Path, limit: int | str) -> None:
    with pytest.raises(RecipeError, match="memory"):
        runner.run(RECIPE, output=tmp_path / "made", smoke=True, offline=True, use_cache=False, max_memory=limit)


def test_a_search_is_left_to_the_command_line(tmp_path: Path) -> None:
    overrides = {"passes.quantize.per_channel": [True, False], "search_strategy": {"sampler": "sequential"}}
    recipe = runner.load_recipe(RECIPE, output=tmp_path / "made", smoke=True, offline=True, overrides=overrides)
    with pytest.raises(UsageError, match=r"quantize\.per_channel.*\n.*recipe search"):
        runner.run(recipe)


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="all-minilm-l6-v2"):
        runner.load_recipe("all-minilm-l6")


def test_the_interface_imports_no_ml_library() -> None:
    script = "import sys, runner; runner.load_recipe; print([n for n in ('torch', 'transformers', 'onnx') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
