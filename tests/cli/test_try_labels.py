import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from runner.cli.try_labels import rank_labels
from runner.cli.try_tasks import Asked
from runner.errors import DataUnavailable, UsageError
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS

LABELS = ("a dog", "a small cat", "the sea")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of("openai/clip-vit-base-patch32")
    return make_twin(twin, "zero-shot-image-classification", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def exported(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "output").mkdir()
    (folder / "scratch").mkdir()
    pass_ = table.get("OnnxConversion")
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return pass_.apply(source, pass_.options.model_validate({"use_dynamo_exporter": False, "target_opset": 17}), context)


def asked(model: ModelHandle, *inputs: str) -> Asked:
    return Asked(model, inputs, 2, "CPUExecutionProvider", 1, 0.0, raw=False, as_json=True)


def test_labels_are_ranked_as_transformers_ranks_them(
    source: ModelHandle, exported: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    image = Image.radial_gradient("L").convert("RGB").resize((300, 200))
    image.save(tmp_path / "picture.png")
    rank_labels(asked(exported, str(tmp_path / "picture.png"), *LABELS))
    ranked = json.loads(capsys.readouterr().out)["labels"]
    texts = AutoTokenizer.from_pretrained(source.folder)(list(LABELS), return_tensors="pt", padding=True)
    pixels = AutoImageProcessor.from_pretrained(source.folder, backend="pil")(image, return_tensors="pt")
    with torch.inference_mode():
        shares = load_torch(source)(**texts, **pixels).logits_per_image.softmax(-1)[0].tolist()
    wanted = sorted(zip(LABELS, shares, strict=True), key=lambda pair: -pair[1])
    assert [label for label, _ in ranked] == [label for label, _ in wanted]
    assert [share for _, share in ranked] == pytest.approx([share for _, share in wanted], abs=1e-4)


def test_a_label_beyond_the_models_length_is_cut(
    exported: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "picture.png")
    rank_labels(asked(exported, str(tmp_path / "picture.png"), "dog " * 300, "a cat"))
    told = capsys.readouterr()
    assert sum(share for _, share in json.loads(told.out)["labels"]) == pytest.approx(1, abs=1e-5)
    assert "are cut to the 77 that the model takes" in told.err


def test_a_picture_without_labels_is_one_error(exported: ModelHandle) -> None:
    with pytest.raises(UsageError, match="nothing to choose from"):
        rank_labels(asked(exported, "picture.png"))


def test_a_missing_picture_is_one_error(exported: ModelHandle) -> None:
    with pytest.raises(DataUnavailable, match="there is no file 'a dog'"):
        rank_labels(asked(exported, "a dog", "a cat"))
