from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import TARGETS


@pytest.mark.parametrize(
    ("name", "feed", "shape"),
    [
        ("cuda/models/vision_encoder/model.onnx", {"pixel_values": np.ones((2, 3, 64, 32), np.float32)}, (2, 8, 256)),
        ("audio_encoder/model.onnx", {"audio_features": np.ones((2, 50, 128), np.float32)}, (2, 50, 256)),
        ("decoder/model.onnx", {"input_ids": np.ones((2, 7), np.int64)}, (2, 7, 1008)),
    ],
)
def test_reads_what_the_name_says(tmp_path: Path, name: str, feed: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
    pass_ = table.get("StandInGraph")
    context = PassContext(tmp_path, tmp_path, TARGETS["cpu"], 1, lambda _: iter(()), lambda _: None)
    made = pass_.apply(ModelHandle("onnx", Path()), pass_.options(name=name), context)
    assert made.attributes["twin_of"] == name
    (output,) = onnxruntime.InferenceSession(made.path).run(None, feed)
    assert output.shape == shape
    assert 0.1 < float(output.std()) < 10
