"""Inputs for models that lack a part of what usually says what they take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.evaluation.probe_inputs import NoProbe, probe_inputs
from runner.models.handle import ModelHandle


def without_padding(source: ModelHandle, folder: Path, *others: str) -> ModelHandle:
    """The tokenizer of a model, without its padding token, alone in a folder of an ONNX model."""
    folder.mkdir()
    for path in source.folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    for name in others:
        (folder / name).write_text("{}")
    return ModelHandle("onnx", folder, "model.onnx", None)


def test_a_folder_of_genai_is_asked_to_generate(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    inputs = probe_inputs(without_padding(tiny_llama, tmp_path / "model", "genai_config.json"))
    assert inputs["input_ids"].shape[0] == 1
    assert inputs["attention_mask"].all()


def test_texts_are_padded_without_a_token_for_it(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    inputs = probe_inputs(without_padding(tiny_llama, tmp_path / "model"))
    assert inputs["input_ids"].shape[0] == 2
    assert not inputs["attention_mask"].all()


def test_words_without_a_tokenizer_are_no_probe(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    source = ModelHandle("onnx", tmp_path, "model.onnx", "zero-shot-image-classification")
    with pytest.raises(NoProbe, match="no tokenizer"):
        probe_inputs(source, {"input_ids": ("batch", "sequence"), "pixel_values": (2, 3, 8, 8)})


def test_one_unnamed_input_is_the_graphs_one(tmp_path: Path) -> None:
    script = tmp_path / "net.py"
    script.write_text("import torch\n\ndef inputs(model=None):\n    return torch.zeros(1, 16)\n")
    attributes = {"model_script": str(script), "dummy_inputs_func": "inputs", "model_loader": "load"}
    source = ModelHandle("pytorch", tmp_path, None, None, attributes)
    assert probe_inputs(source, {"x": (1, 16)})["x"].shape == (1, 16)
