"""Ranges of activations found on pictures: each method finds its own, and no more than one picture is held for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from runner.data.batches import open_data
from runner.data.pictures import normalised, pictures
from runner.errors import DataUnavailable
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.quantize.integer import calibration_reader
from runner.recipe.config import DataConfig

METHODS = ("MinMax", "Percentile", "Entropy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of different sizes, one of them with a bright dot: an outlier that a percentile cuts off."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for at in range(6):
        values = random.integers(90, 130, (40 + at, 60 - at, 3)).astype(np.uint8)
        values[20, 20] = 255 if at == 3 else 110
        Image.fromarray(values).save(folder / f"{at}.png")
    return folder


def batches(folder: Path, model: ModelHandle) -> Any:
    config = DataConfig.model_validate(
        {"name": "calibration", "load_dataset_config": {"type": "images", "path": folder.name}, "dataloader_config": {}}
    )
    return open_data(config, folder=folder.parent, model=model, smoke=False, script_allowed=False)


def scales(model: ModelHandle) -> dict[str, float]:
    found = onnx.load(model.path).graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in found if tensor.name.endswith("_scale")}
    return {name: float(array) for name, array in arrays.items() if array.ndim == 0}


def test_every_method_gives_ranges_of_its_own_and_a_model_that_runs(exported_resnet, apply_pass, folder) -> None:
    data = batches(folder, exported_resnet)
    found = {}
    for method in METHODS:
        made = apply_pass("OnnxStaticQuantization", exported_resnet, data=data, data_config="c", calibrate_method=method)
        logits = open_session(made, 1).run(None, next(iter(data)))[0]
        assert np.isfinite(logits).all()
        found[method] = scales(made)
    loose = apply_pass(
        "OnnxStaticQuantization", exported_resnet, data=data, data_config="c", calibrate_method="Percentile",
        extra_options={"CalibPercentile": 90.0},
    )  # fmt: skip
    found["Percentile 90"] = scales(loose)
    assert len({tuple(sorted(ranges.items())) for ranges in found.values()}) == len(found)
    widest = found["MinMax"]
    for method, ranges in found.items():
        assert ranges.keys() == widest.keys()
        assert all(ranges[name] <= 1.01 * widest[name] for name in ranges), method
    assert sum(found["Percentile 90"].values()) < sum(found["Percentile"].values())


def test_a_picture_that_is_none_is_named_before_the_model_is_made(exported_resnet, apply_pass, folder, tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.png").write_text("no picture")
    data = batches(tmp_path / "pictures", exported_resnet)
    with pytest.raises(DataUnavailable, match=r"notes\.png is not a readable image"):
        apply_pass("OnnxStaticQuantization", exported_resnet, data=data, data_config="c")


class Counted:
    """Batches that know how many of them somebody holds."""

    def __init__(self, count: int) -> None:
        self.count, self.held, self.most = count, 0, 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for at in range(self.count):
            array = np.full(4, at, np.float32)
            self.held += 1
            self.most = max(self.most, self.held)
            weakref.finalize(array, self._dropped)
            yield {"x": array}
            del array

    def _dropped(self) -> None:
        self.held -= 1


def test_batches_come_by_ranges_and_are_not_kept() -> None:
    given = Counted(40)
    reader = calibration_reader(given)
    assert len(reader) == 40
    seen = []
    for start in range(0, 40, 2):
        reader.set_range(start, start + 2)
        while (batch := reader.get_next()) is not None:
            seen.append(float(batch["x"][0]))
    assert seen == list(map(float, range(40)))
    reader.set_range(5, 7)
    assert [float(reader.get_next()["x"][0]) for _ in range(2)] == [5.0, 6.0]
    assert reader.get_next() is None
    gc.collect()
    assert given.most <= 3


def test_pictures_are_read_when_they_are_asked_for(folder, tmp_path) -> None:
    files = pictures(folder)
    prepared = normalised([*files, tmp_path / "gone.png"], 32, 0.875, [0.5] * 3, [0.5] * 3)
    assert len(prepared) == 7
    inputs, _ = prepared[0]
    assert inputs["pixel_values"].shape == (3, 32, 32)
    assert float(inputs["pixel_values"].abs().max()) <= 1
    with pytest.raises(DataUnavailable, match=r"gone\.png"):
        list(prepared)
