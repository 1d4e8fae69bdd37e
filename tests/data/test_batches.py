"""Data configurations become batches that fit the model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from runner.data.batches import open_data
from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, RunFailed
from runner.recipe.config import DataConfig

SENTENCES = ["the cat sat", "a dog ran over the hill", "red ball", "it was very sad and then happy", "the mat"]


def config(**parts) -> DataConfig:
    return DataConfig.model_validate({"name": "data", **parts})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sentences.txt").write_text("\n\n".join(SENTENCES) + "\n")
    (tmp_path / "labels.json").write_text(json.dumps([0, 1, 2, 1, 0]))
    return tmp_path


def opened(data: DataConfig, folder, model, *, smoke=False, script_allowed=True):
    return open_data(data, folder=folder, model=model, smoke=smoke, script_allowed=script_allowed)


class TestSentences:
    def test_batches_are_padded_to_their_longest(self, folder, exported_bert):
        data = config(
            load_dataset_config={"type": "sentences", "path": "sentences.txt", "labels": "labels.json"},
            dataloader_config={"batch_size": 2},
        )
        batches = opened(data, folder, exported_bert)
        pairs = list(batches.labelled())
        assert [inputs["input_ids"].shape for inputs, _ in pairs] == [(2, 8), (2, 9), (1, 4)]
        assert [labels.tolist() for _, labels in pairs] == [[0, 1], [2, 1], [0]]
        first = pairs[0][0]
        assert first["attention_mask"].sum(1).tolist() == [5, 8]
        assert first["input_ids"][0, 5:].tolist() == [0, 0, 0]
        assert len(list(batches)) == len(list(batches)) == 3

    def test_full_length_and_types_of_the_graph(self, folder, exported_bert, apply_pass):
        narrow = apply_pass("OrtTransformersOptimization", exported_bert, input_int32=True)
        data = config(
            load_dataset_config={"type": "sentences", "path": "sentences.txt", "max_samples": 3},
            pre_process_data_config={"type": "tokenize", "max_length": 6, "padding": "max_length"},
        )
        found = list(opened(data, folder, narrow))
        assert [batch["input_ids"].shape for batch in found] == [(1, 6)] * 3
        assert found[0]["input_ids"].dtype == np.int32

    @pytest.mark.parametrize(
        ("load", "told"),
        [
            ({"type": "sentences", "path": "nowhere.txt"}, "there is no 'nowhere.txt'"),
            ({"type": "sentences", "path": "empty.txt"}, "no sentences"),
            ({"type": "sentences", "path": "sentences.txt", "labels": "short.json"}, "1 labels for 5 sentences"),
        ],
    )
    def test_files_that_do_not_do(self, folder, exported_bert, load, told):
        (folder / "empty.txt").write_text("\n")
        (folder / "short.json").write_text("[1]")
        with pytest.raises(DataUnavailable, match=told):
            list(opened(config(load_dataset_config=load), folder, exported_bert))

    @pytest.mark.parametrize(
        ("load", "told"),
        [
            ({"type": "sentenses", "path": "sentences.txt"}, "did you mean 'sentences'"),
            ({"type": "sentences", "pth": "sentences.txt"}, "did you mean 'path'"),
            ({"type": "sentences"}, "needs the parameter 'path'"),
        ],
    )
    def test_mistakes_in_the_configuration(self, folder, exported_bert, load, told):
        with pytest.raises(InvalidRecipe, match=told):
            opened(config(load_dataset_config=load), folder, exported_bert)


class TestImages:
    @pytest.fixture
    def pictures(self, tmp_path):
        from PIL import Image

        (tmp_path / "images").mkdir()
        for at in range(3):
            Image.new("RGB", (40 + at, 50), (at * 80, 10, 200)).save(tmp_path / "images" / f"{at}.png")
        (tmp_path / "labels.json").write_text(json.dumps({f"{at}.png": at for at in range(3)}))
        return tmp_path

    def test_pixels_and_labels(self, pictures, exported_resnet):
        data = config(
            load_dataset_config={"type": "images", "path": "images", "labels": "labels.json"},
            dataloader_config={"batch_size": 2},
        )
        pairs = list(opened(data, pictures, exported_resnet).labelled())
        assert [inputs["pixel_values"].shape for inputs, _ in pairs] == [(2, 3, 32, 32), (1, 3, 32, 32)]
        assert pairs[0][0]["pixel_values"].dtype == np.float32
        assert [labels.tolist() for _, labels in pairs] == [[0, 1], [2]]

    def test_file_that_is_no_image(self, pictures, exported_resnet):
        (pictures / "images" / "3.png").write_text("not an image")
        with pytest.raises(DataUnavailable, match=r"3\.png is not a readable image"):
            list(opened(config(load_dataset_config={"type": "images", "path": "images"}), pictures, exported_resnet))

    def test_empty_folder(self, tmp_path, exported_resnet):
        (tmp_path / "images").mkdir()
        with pytest.raises(DataUnavailable, match="no images"):
            opened(config(load_dataset_config={"type": "images", "path": "images"}), tmp_path, exported_resnet)


class TestMadeUp:
    def test_of_the_models_shapes(self, tmp_path, exported_bert):
        batches = opened(config(type="DummyDataContainer", dataloader_config={"batch_size": 4}), tmp_path, exported_bert)
        first = next(iter(batches))
        assert batches.synthetic
        assert first["input_ids"].shape == (4, 32)
        assert first["input_ids"].max() < 35
        assert first["attention_mask"].min() == 1

    def test_of_shapes_given(self, tmp_path, exported_bert):
        load = {"input_names": ["input_ids"], "input_shapes": [[2, 7]], "input_types": ["int64"], "max_samples": 5}
        found = list(opened(config(type="dummydatacontainer", load_dataset_config=load), tmp_path, exported_bert))
        assert len(found) == 5
        assert found[0]["input_ids"].shape == (2, 7)

    def test_of_a_transformers_folder(self, tmp_path, tiny_resnet):
        first = next(iter(opened(config(type="DummyDataContainer"), tmp_path, tiny_resnet)))
        assert first["pixel_values"].shape == (1, 3, 32, 32)

    def test_hub_data_in_a_smoke_run(self, tmp_path, exported_bert):
        data = config(
            type="HuggingfaceContainer", user_script="absent.py", load_dataset_config={"data_name": "glue", "subset": "mrpc"}
        )
        assert opened(data, tmp_path, exported_bert, smoke=True).synthetic

    def test_hub_data_without_datasets(self, tmp_path, exported_bert, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        data = config(type="HuggingfaceContainer", load_dataset_config={"data_name": "glue"})
        with pytest.raises(DataUnavailable, match="pip install datasets"):
            opened(data, tmp_path, exported_bert)

    def test_unknown_container(self, tmp_path, exported_bert):
        with pytest.raises(InvalidRecipe, match="did you mean 'HuggingfaceContainer'"):
            opened(config(type="HugingfaceContainer"), tmp_path, exported_bert)


SCRIPT = """
import torch
from pathlib import Path
from olive.data.registry import Registry
from beside import SCALE

@Registry.register_dataset()
def sentences(path, **_):
    return Path(path).read_text().split("\\n\\n")

@Registry.register_pre_process("Lengths")
def lengths(dataset, model_name, max_length=4, **_):
    assert Path(model_name, "tokenizer.json").is_file()
    ids = [torch.arange(max_length) * SCALE for text in dataset]
    return [({"input_ids": one, "attention_mask": torch.ones_like(one), "token_type_ids": torch.zeros_like(one)}, at)
            for at, one in enumerate(ids)]

class ByIndex:
    def __init__(self, dataset):
        self.dataset = dataset
    def __len__(self):
        return 2
    def __getitem__(self, at):
        inputs, label = self.dataset[at]
        return {name: value[None] for name, value in inputs.items()}, torch.tensor([label])

@Registry.register_dataloader()
def by_index(dataset, batch_size=1):
    return ByIndex(dataset)

@Registry.register_post_process()
def best(output, top=1):
    return output.argmax(-1)[:top]
"""


class TestUserScript:
    @pytest.fixture
    def scripted(self, folder):
        (folder / "user_script.py").write_text(SCRIPT)
        (folder / "beside.py").write_text("SCALE = 2\n")
        return folder

    def data(self, **parts) -> DataConfig:
        return config(
            type="HuggingfaceContainer",
            user_script="user_script.py",
            load_dataset_config={"type": "sentences", "path": "sentences.txt"},
            pre_process_data_config={"type": "lengths", "max_length": 5},
            post_process_data_config={"type": "best", "top": 2},
            **parts,
        )

    def test_components_take_the_place_of_ours(self, scripted, exported_bert):
        batches = opened(self.data(dataloader_config={"batch_size": 3}), scripted, exported_bert)
        pairs = list(batches.labelled())
        assert pairs[0][0]["input_ids"].tolist() == [[0, 2, 4, 6, 8]] * 3
        assert [labels.tolist() for _, labels in pairs] == [[0, 1, 2], [3, 4]]
        assert batches.post_process(np.eye(3)).tolist() == [0, 1]

    def test_dataloader_by_index(self, scripted, exported_bert):
        pairs = list(opened(self.data(dataloader_config={"type": "by_index"}), scripted, exported_bert).labelled())
        assert [labels.tolist() for _, labels in pairs] == [[0], [1]]
        assert isinstance(pairs[0][0]["input_ids"], np.ndarray)

    def test_nothing_is_left_behind(self, scripted, exported_bert):
        before = list(sys.path)
        opened(self.data(), scripted, exported_bert)
        assert not any(name == "olive" or name.startswith("olive.") for name in sys.modules)
        assert sys.path == before

    def test_two_scripts_do_not_meet(self, scripted, exported_bert):
        other = SCRIPT.replace("* SCALE", "* 3")
        (scripted / "other.py").write_text(other)
        first = opened(self.data(), scripted, exported_bert)
        second = opened(self.data().model_copy(update={"user_script": "other.py"}), scripted, exported_bert)
        assert next(iter(first))["input_ids"][0, 1] == 2
        assert next(iter(second))["input_ids"][0, 1] == 3

    def test_not_trusted(self, scripted, exported_bert):
        with pytest.raises(NotTrusted, match=r"user_script\.py"):
            opened(self.data(), scripted, exported_bert, script_allowed=False)

    def test_script_that_raises(self, scripted, exported_bert):
        (scripted / "user_script.py").write_text("1 / 0\n")
        with pytest.raises(RunFailed, match="ZeroDivisionError on import"):
            opened(self.data(), scripted, exported_bert)

    def test_component_that_raises(self, scripted, exported_bert):
        (scripted / "user_script.py").write_text(SCRIPT.replace("return Path(path)", "raise OSError('gone')  #"))
        with pytest.raises(RunFailed, match=r"sentences\(\) raised OSError: gone"):
            opened(self.data(), scripted, exported_bert)

    def test_data_that_lacks_an_input(self, scripted, exported_bert):
        (scripted / "user_script.py").write_text(SCRIPT.replace('"attention_mask"', '"mask"'))
        with pytest.raises(DataUnavailable, match="'attention_mask' is not among the data"):
            list(opened(self.data(), scripted, exported_bert))


def test_imports_no_ml_library():
    code = (
        "import sys, runner.data.batches, runner.passes.table as t\n"
        "[t.get(name) for name in t.MODULES]\n"
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
