"""`recipe try` with a model that turns pictures into features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from runner.cli.try_features import show_features
from runner.cli.try_tasks import Asked, answer
from runner.errors import DataUnavailable
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return make_twin(architecture_of("facebook/dinov2-small"), "image-feature-extraction", tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def exported(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "output").mkdir()
    (folder / "scratch").mkdir()
    pass_ = table.get("OnnxConversion")
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return pass_.apply(source, pass_.options(), context)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    gradient = Image.radial_gradient("L").convert("RGB")
    gradient.save(folder / "a.png")
    gradient.convert("CMYK").save(folder / "b.jpg")
    gradient.convert("RGBA").resize((200, 300)).save(folder / "c.png")
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "d.png")
    return folder


def asked(model: ModelHandle, *inputs: Path, as_json: bool = True) -> Asked:
    return Asked(model, tuple(map(str, inputs)), 2, "CPUExecutionProvider", 1, 0.0, raw=False, as_json=as_json)


def test_a_picture_is_its_class_token(source, exported, pictures, capsys) -> None:
    from transformers import AutoImageProcessor

    answer(asked(exported, pictures / "a.png"))
    told = json.loads(capsys.readouterr().out)
    pixels = AutoImageProcessor.from_pretrained(source.folder, backend="pil")(
        Image.open(pictures / "a.png"), return_tensors="pt"
    )
    with torch.inference_mode():
        wanted = load_torch(source)(**pixels).last_hidden_state[:, 0]
    assert told["vectors"][0] == pytest.approx((wanted / wanted.norm()).flatten().tolist(), abs=1e-4)


def test_pictures_of_a_folder_are_ordered_by_how_near_they_are(exported, pictures, capsys) -> None:
    show_features(asked(exported, pictures / "a.png", pictures, as_json=False))
    lines = capsys.readouterr().out.splitlines()
    assert sum("numbers" in line for line in lines) == 4  # a.png is named twice, and looked at once
    ranked = [line.split() for line in lines[lines.index("nearest to a.png") + 1 :]]
    assert {name for _, name in ranked} == {"b.jpg", "c.png", "d.png"}
    nearness = [float(cosine) for cosine, _ in ranked]
    assert nearness == sorted(nearness, reverse=True)


def test_what_is_no_picture_is_one_error(exported, pictures, tmp_path) -> None:
    (pictures / "e.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    for named, message in (
        (pictures / "e.png", "not a readable image"),
        (pictures, "not a readable image"),
        (tmp_path / "none.png", "there is no file"),
        (tmp_path / "empty", "has no pictures"),
    ):
        with pytest.raises(DataUnavailable, match=message):
            show_features(asked(exported, named))
