"""`recipe finetune` on a tiny Llama: data, training, results, and what is told of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle

TEMPLATE = r"### Question: {instruction}\n### Answer: {response}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty rows of questions and answers."""
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": f"what is {at}", "response": f"a number {at}"}) for at in range(20)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _finetune(model: ModelHandle, output: Path, *further: str) -> int:
    return run_command(
        ["finetune", "--model_name_or_path", str(model.folder), "--output_path", str(output), "--max_seq_len", "64", *further]
    )


def test_adapter_merged_model_and_recipe(
    tiny_llama: ModelHandle, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out"
    code = _finetune(tiny_llama, output, "--data_name", str(rows), "--text_template", TEMPLATE, "--max-steps", "2", "--offline")
    told = capsys.readouterr()
    assert code == 0, told.err
    assert (output / "adapter" / "adapter_config.json").is_file()
    assert (output / "model" / "model.safetensors").is_file()
    assert (output / "model" / "receipt.json").is_file()
    config = json.loads((output / "onnx-recipe" / "olive_config.json").read_text())
    assert config["input_model"]["model_path"] == str(output / "model")
    assert "trained  2 steps" in told.out
    assert "held-out loss" in told.out
    training = json.loads((output / "model-recipe" / "olive_config.json").read_text())
    prepared = training["data_configs"][0]["pre_process_data_config"]
    assert prepared["text_template"] == "### Question: {instruction}\n### Answer: {response}"
    assert prepared["completion_only_loss"]
    assert not any((tmp_path / "cache" / "kept").glob("*"))


@pytest.mark.parametrize(
    ("further", "rule"),
    [
        (("--data_files", "nowhere.jsonl"), "no-data"),
        ((), "no-data"),
        (("--data_name", "ROWS", "--method", "lorra"), "unknown-method"),
        (("--data_name", "ROWS", "--text_template", "{instruction", "--packing"), "bad-template"),
    ],
)
def test_bad_input_is_named_before_any_work(
    tiny_llama: ModelHandle, rows: Path, tmp_path: Path, further: tuple[str, ...], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(rows) if word == "ROWS" else word for word in further]
    assert _finetune(tiny_llama, tmp_path / "out", *words) == 2
    assert rule in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
