import json
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from runner.cli import run_command
from runner.cli.try_labels import label_option, rank_labels
from runner.cli.try_tasks import Asked, answer
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
    options = {"use_dynamo_exporter": False, "target_opset": 17, "split_towers": True}
    return pass_.apply(source, pass_.options.model_validate(options), context)


def asked(model: ModelHandle, *inputs: str, labels: tuple[str, ...] = ()) -> Asked:
    return Asked(model, inputs, 2, "CPUExecutionProvider", 1, 0.0, raw=False, as_json=True, labels=labels)


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

    rank_labels(asked(exported, str(tmp_path / "picture.png"), labels=LABELS))
    told = json.loads(capsys.readouterr().out)
    assert told["labels"] == ranked
    with torch.inference_mode():
        output = load_torch(source)(**texts, **pixels)
    cosines = (output.image_embeds @ output.text_embeds.T)[0].tolist()
    assert [told["cosine"][label] for label in LABELS] == pytest.approx(cosines, abs=1e-5)


def test_several_pictures_are_ranked_one_by_one(
    exported: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(9)]
    for number, path in enumerate(paths):
        Image.radial_gradient("L").resize((40 + 20 * number, 50)).save(path)
    rank_labels(asked(exported, *paths, labels=(*LABELS, LABELS[0])))
    told = capsys.readouterr()
    assert "1 labels that stand there twice are counted once" in told.err
    found = json.loads(told.out)
    assert [one["input"] for one in found] == paths
    rank_labels(asked(exported, paths[8], labels=LABELS))
    alone = json.loads(capsys.readouterr().out)
    assert [share for _, share in found[8]["labels"]] == pytest.approx([share for _, share in alone["labels"]], abs=1e-4)


@pytest.mark.parametrize("labels", ["", "a dog,,a cat", "a dog, "])
def test_an_empty_label_is_one_error(labels: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["try", "clip-vit-base-patch32", "picture.png", "--labels", labels]) == 2
    assert "there is an empty label" in capsys.readouterr().err


def test_labels_come_from_a_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("a dog, asleep\n\n un café \n", encoding="utf-8")
    command = click.command()(label_option(lambda labels: click.echo(json.dumps(labels))))
    command.main([f"--labels={file}"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == ["a dog, asleep", "un café"]
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="cannot be read as text"):
        command.main([f"--labels={file}"], standalone_mode=False)


def test_a_file_of_labels_that_is_not_there_is_no_label(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["try", "clip-vit-base-patch32", "picture.png", "--labels", "nowhere.txt"]) == 2
    assert "there is no file 'nowhere.txt'" in capsys.readouterr().err


def test_a_text_named_png_is_one_error(exported: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("no picture")
    with pytest.raises(DataUnavailable, match="is not a readable image"):
        rank_labels(asked(exported, str(tmp_path / "picture.png"), labels=LABELS))


def test_a_model_of_another_task_ranks_no_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a model for 'fill-mask' ranks no labels"):
        answer(asked(ModelHandle("onnx", tmp_path, "model.onnx", "fill-mask"), "a text", labels=LABELS))


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
