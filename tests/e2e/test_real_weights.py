"""Whole recipes on real weights, which the package index brings: from the command line to a model that keeps its quality."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("real-weights")]
Recipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The command, in an empty folder, with the user's downloads but a store of its own."""
    from runner.engine.places import user_cache

    folder = tmp_path_factory.mktemp("real")
    store = folder / "cache"
    store.mkdir()
    downloads = user_cache() / "models"
    downloads.mkdir(parents=True, exist_ok=True)
    (store / "models").symlink_to(downloads, target_is_directory=True)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            cwd=folder,
            env={**os.environ, "RECIPE_CACHE": str(store), "COLUMNS": "200"},
            text=True,
            capture_output=True,
            check=False,
        )

    return call


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def figures(results: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in results["rows"]}


def test_a_language_model_becomes_small_and_still_answers(recipe: Recipe) -> None:
    ran = json.loads(done(recipe("run", "smollm2-135m-instruct/cpu-int8", "--json")))
    output = Path(ran["output"])
    assert {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "receipt.json",
    } <= {path.name for path in output.iterdir()}
    assert "up to date" in done(recipe("run", "smollm2-135m-instruct/cpu-int8"))
    parity = ran["receipt"]["steps"][-1]["parity"]["outputs"]["logits"]
    assert parity["cosine"] > 0.999
    assert "Paris" in done(recipe("try", str(output), "What is the capital of France, and what is it known for?"))
    assert "intra_op_num_threads" not in (output / "genai_config.json").read_text()


def test_its_quality_is_measured_and_its_gates_are_judged(recipe: Recipe) -> None:
    results = json.loads(done(recipe("bench", "smollm2-135m-instruct/cpu-int8", "--rounds", "1", "--json")))
    assert all(gate["met"] for gate in results["gates"])
    assert 0.97 < figures(results)["perplexity"]["ratio"]["value"] < 1.02
    missed = recipe("bench", "smollm2-135m-instruct/cpu-int8", "--rounds", "1", "--smoke")
    assert missed.returncode == 0  # a twin is measured, and not judged


def test_embeddings_keep_their_meaning_in_eight_bits(recipe: Recipe) -> None:
    results = json.loads(done(recipe("bench", "all-minilm-l6-v2/cpu-int8-dynamic", "--rounds", "1", "--json")))
    assert figures(results)["cosine"]["optimised"]["value"] >= 0.99
    told = done(recipe("try", "models/all-minilm-l6-v2-cpu-int8-dynamic", "A cat sleeps.", "A kitten naps.", "Stocks fell."))
    assert told
