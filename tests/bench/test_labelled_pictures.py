"""Accuracy on folders of pictures that are named after what they show, for classifiers and models of pictures and texts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.bench.answers import accuracy
from runner.bench.bench import Contest, bench
from runner.bench.inputs import make_inputs
from runner.bench.inputs_record import Request
from runner.bench.labelled_pictures import MOST, captions, classes_of, labelled_pictures
from runner.cli import run_command
from runner.errors import DataUnavailable
from runner.evaluation.forward import open_forward, outputs_of
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.recipe.info import Evaluation
from runner.targets.target import TARGETS

NAMES = {"red_wine": (200, 30, 40), "Sea": (20, 60, 200), "grass": (40, 180, 50)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in NAMES.items():
        (root / name).mkdir()
        for number in range(4):
            Image.new("RGB", (40 + number, 30), colour).save(root / name / f"{number}.png")
    (root / "notes.txt").write_text("no picture")
    return root


def contest(source: ModelHandle, output: ModelHandle, pictures: Path) -> Contest:
    return Contest(
        output=output, source=source, recipe="tiny", variant=None, model_id="nobody/tiny", gates={}, folder=pictures.parent,
        evaluation=Evaluation(images=pictures.name), target=TARGETS["cpu"], threads=2, rounds=1, turn_seconds=0.02,
    )  # fmt: skip


def relabelled(model: ModelHandle, folder: Path, labels: dict[str, str]) -> ModelHandle:
    shutil.copytree(model.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    return ModelHandle(model.kind, folder, model.file, model.task, model.attributes)


LABELS = {"0": "sea, ocean", "1": "red wine", "2": "crane", "3": "crane, hoist", "4": "grass"}


def test_a_classifier_is_judged_by_the_names_of_the_folders(tiny_resnet, exported_resnet, pictures, tmp_path):
    source = relabelled(tiny_resnet, tmp_path / "source", LABELS)
    results = bench(contest(source, exported_resnet, pictures))
    rows = {row.name: row for row in results.rows}
    assert rows["accuracy"].optimised.value == rows["accuracy"].baseline.value
    assert len(rows["accuracy"].optimised.samples) == 12
    assert rows["agreement"].optimised.value == 1
    assert "12 pictures of 3 classes" in results.notes


def test_names_of_classes(tiny_resnet, pictures, tmp_path):
    model = relabelled(tiny_resnet, tmp_path / "model", LABELS)
    assert classes_of(model, ["Ocean", "RED-WINE", "sea, ocean", "hoist", "4"]) == {
        "Ocean": 0, "RED-WINE": 1, "sea, ocean": 0, "hoist": 3, "4": 4
    }  # fmt: skip
    assert classes_of(model, ["crane"]) == {"crane": 2}
    with pytest.raises(DataUnavailable, match="no class 'gras'") as told:
        classes_of(model, ["gras"])
    assert "did you mean 'grass'?" in str(told.value)
    twice = relabelled(tiny_resnet, tmp_path / "twice", {**LABELS, "2": "bird, crane"})
    with pytest.raises(DataUnavailable, match="'crane' names the classes 2, 3"):
        classes_of(twice, ["crane"])


def test_which_pictures_there_are(pictures, tmp_path):
    assert [name for _, name in labelled_pictures(pictures)] == ["Sea"] * 4 + ["grass"] * 4 + ["red_wine"] * 4
    assert labelled_pictures(pictures / "Sea") == []
    assert labelled_pictures(tmp_path / "nowhere") == []
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(MOST):
            (tmp_path / name / f"{number}.png").touch()
    names = [name for _, name in labelled_pictures(tmp_path)]
    assert names == ["a"] * (MOST // 2) + ["b"] * (MOST // 2)


def test_a_model_of_pictures_and_texts_chooses_among_captions(apply_pass, pictures, tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer

    twin = architecture_of("openai/clip-vit-base-patch32")
    source = make_twin(twin, "zero-shot-image-classification", tmp_path / "clip")
    output = apply_pass("OnnxConversion", source, use_dynamo_exporter=False, target_opset=17, split_towers=True)
    evaluation = Evaluation(images=str(pictures))
    inputs = make_inputs(Request(source, output, evaluation, tmp_path, tmp_path))
    assert [dict(np.load(feed))["pixel_values"].shape[0] for feed in inputs.answers] == [8, 4]
    texts = AutoTokenizer.from_pretrained(source.folder)(
        [f"a photo of a {name}." for name in ("Sea", "grass", "red wine")], return_tensors="pt", padding=True
    )
    images = [Image.open(file) for file, _ in labelled_pictures(pictures)]
    pixels = AutoImageProcessor.from_pretrained(source.folder, backend="pil")(images, return_tensors="pt")
    with torch.inference_mode():
        logits = load_torch(source)(**texts, **pixels).logits_per_image.numpy()
    forward, files = open_forward(output, 2, "CPUExecutionProvider"), []
    for at, feed in enumerate(inputs.answers):
        files.append(tmp_path / f"{at}-out.npz")
        np.savez(files[-1], **outputs_of(forward, dict(np.load(feed))))
    found = np.concatenate([np.load(file)["logits_per_image"] for file in files])
    np.testing.assert_allclose(found, logits, atol=1e-3)
    right = (found.argmax(-1) == np.repeat([0, 1, 2], 4)).astype(float)
    assert accuracy(inputs, files).samples == tuple(right)


def test_captions_of_names_that_nobody_chose_for_a_text(tmp_path):
    from transformers import AutoTokenizer

    twin = architecture_of("openai/clip-vit-base-patch32")
    model = make_twin(twin, "zero-shot-image-classification", tmp_path / "clip")
    found = captions(model, ["ankle_boot", "cafe\u0301 noir", " t-shirt"])  # an accent as macOS writes it
    decoded = AutoTokenizer.from_pretrained(model.folder).batch_decode(found["input_ids"], skip_special_tokens=True)
    assert decoded == ["a photo of a ankle boot.", "a photo of a caf\u00e9 noir.", "a photo of a t shirt."]
    for names, cause in [
        (["sea", "long " * 80], "the caption of 'long .* tokens, and the model reads 77"),
        (["red_wine", "sea", "red wine"], "the folders 'red_wine' and 'red wine' give the same caption"),
        (["sea"], "all pictures lie in the folder 'sea'"),
    ]:
        with pytest.raises(DataUnavailable, match=cause):
            captions(model, names)


def test_pictures_that_cannot_judge_are_refused_before_anything_is_made(pictures, capsys):
    for words, cause in [
        (["all-minilm-l6-v2", "--images", str(pictures)], "a model for feature-extraction is not judged by pictures"),
        (["clip-vit-base-patch32", "--images", str(pictures / "Sea")], "has no folders in it to choose among"),
        (["vit-base-patch16-224", "--images", str(pictures), "--save"], "--save is for figures on the recipe's own data"),
        (["vit-base-patch16-224", "--images", str(pictures / "nowhere")], "does not exist"),
    ]:
        assert run_command(["bench", *words, "--smoke"]) == 2
        assert cause in capsys.readouterr().err
