"""A training that was interrupted goes on from its last checkpoint and ends as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import TARGETS
from tests.passes.finetune.conftest import TRAINING, counting


def _train(model: ModelHandle, folder: Path, kept: Path, stop_at: str | None = None, **arguments: Any) -> list[str]:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if stop_at and text.startswith(stop_at):
            raise KeyboardInterrupt

    (folder / "output").mkdir(parents=True)
    (folder / "scratch").mkdir()
    data = {"train": counting(0), "eval": counting(1, 1)}
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 1, data.__getitem__, say, kept)
    pass_ = table.get("LoRA")
    training = {**TRAINING, "max_steps": 12, "logging_steps": 4, "save_steps": 4, **arguments}
    options = {"r": 4, "train_data_config": "train", "eval_data_config": "eval", "training_args": training}
    pass_.apply(model, pass_.options.model_validate(options), context)
    return said


def _weights(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "output" / "adapter" / "adapter_model.safetensors"))


def test_it_goes_on_and_gives_the_same_adapter_and_losses(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    whole = _train(tiny_llama, tmp_path / "whole", tmp_path / "kept-whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_llama, tmp_path / "cut", tmp_path / "kept", stop_at="8 of 12")
    half = tmp_path / "kept" / "checkpoint-8"
    half.mkdir()  # what a kill leaves while a checkpoint is written
    resumed = _train(tiny_llama, tmp_path / "resumed", tmp_path / "kept")
    assert "4 of 12: going on from step 4" in resumed
    assert [text for text in resumed if "held-out" in text] == [text for text in whole if "held-out" in text]
    expected, found = _weights(tmp_path / "whole"), _weights(tmp_path / "resumed")
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_going_on_can_be_refused(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_llama, tmp_path / "cut", tmp_path / "kept", stop_at="8 of 12")
    again = _train(tiny_llama, tmp_path / "again", tmp_path / "kept", resume_from_checkpoint=False)
    assert not any("going on" in text for text in again)
