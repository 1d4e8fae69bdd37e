"""Olive's containers and components: local files, sequences for language models, token labels, dummies, smoke rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from datasets import Dataset

from runner.data.batches import is_hub, open_data
from runner.data.local_files import data_digest
from runner.data.model_feed import Feed
from runner.data.text_generation import IGNORED_LABEL, text_generation, text_generation_options
from runner.errors import DataUnavailable, InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput
from runner.models.torch_source import load_tokenizer
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.recipe.config import DataConfig
from runner.targets.target import TARGETS

ROWS = [
    {"sentence1": "the cat sat", "sentence2": "on the mat", "label": 1},
    {"sentence1": "a dog ran over the hill", "sentence2": "it was happy", "label": 0},
    {"sentence1": "red ball", "sentence2": "the old house", "label": 1},
]
TEXTS = [{"text": text} for text in ("the cat sat on the mat", "a dog ran over the hill and then it was very sad", "red ball")]


def config(**parts: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "data", "type": "HuggingfaceContainer", **parts})


def opened(data: DataConfig, folder, model, *, smoke: bool = False):
    return open_data(data, folder=folder, model=model, smoke=smoke, script_allowed=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


class TestLocalFiles:
    def write(self, folder, form: str) -> str:
        rows = Dataset.from_list(ROWS)
        (folder / "data").mkdir(exist_ok=True)
        path = folder / "data" / f"rows.{form}"
        {"csv": rows.to_csv, "parquet": rows.to_parquet, "json": rows.to_json}[form](str(path))
        return f"data/rows.{form}"

    @pytest.mark.parametrize("form", ["json", "csv", "parquet"])
    def test_rows_of_every_format_become_pairs(self, folder, tiny_classifier, form):
        data = config(
            load_dataset_config={"data_name": form, "data_files": self.write(folder, form)},
            pre_process_data_config={"input_cols": ["sentence1", "sentence2"], "padding": "max_length", "max_length": 12},
        )
        pairs = list(opened(data, folder, tiny_classifier).labelled())
        assert [labels.tolist() for _, labels in pairs] == [[1], [0], [1]]
        assert pairs[0][0]["input_ids"].shape == (1, 12)
        assert pairs[0][0]["token_type_ids"].sum() == 4  # the second sentence and its end

    def test_lines_of_text_by_wildcard(self, folder, tiny_llama):
        for at in range(2):
            (folder / f"part{at}.txt").write_text("the cat sat\na dog ran\n")
        data = config(
            load_dataset_config={"data_name": "text", "data_files": "part*.txt"},
            pre_process_data_config={"strategy": "line-by-line", "max_seq_len": 8},
        )
        assert len(list(opened(data, folder, tiny_llama))) == 4
        before = data_digest(data, folder)
        (folder / "part1.txt").write_text("another\n")
        assert data_digest(data, folder) != before

    def test_split_and_filter(self, folder, tiny_classifier):
        load = {"data_name": "json", "data_files": {"held": "pairs.jsonl"}, "split": "held[:2]", "col_filters": {"label": 1}}
        data = config(load_dataset_config=load, pre_process_data_config={"input_cols": ["sentence1"]})
        assert len(list(opened(data, folder, tiny_classifier))) == 1

    def test_local_files_are_no_hub_data_under_smoke(self, folder, tiny_classifier):
        data = config(
            load_dataset_config={"data_name": "json", "data_files": "pairs.jsonl"},
            pre_process_data_config={"input_cols": ["sentence1"]},
        )
        assert not is_hub(data, folder)
        batches = opened(data, folder, tiny_classifier, smoke=True)
        assert not batches.synthetic
        assert len(list(batches)) == 3

    @pytest.mark.parametrize(
        ("load", "pre", "told"),
        [
            ({"data_files": "absent.jsonl"}, {}, "the data set 'json' cannot be had"),
            ({"data_files": "pairs.jsonl"}, {"input_cols": ["text"]}, "no column text; it has sentence1, sentence2, label"),
        ],
    )
    def test_what_is_not_there(self, folder, tiny_classifier, load, pre, told):
        data = config(load_dataset_config={"data_name": "json", **load}, pre_process_data_config=pre)
        with pytest.raises(DataUnavailable, match=told):
            opened(data, folder, tiny_classifier)


class TestTextGeneration:
    def made(self, model, rows=TEXTS, **options: Any):
        asked = text_generation_options({"add_special_tokens": False, "joiner": None, **options})
        return text_generation(rows, model, asked).items

    def ids(self, model) -> list[int]:
        tokenizer = load_tokenizer(model)
        return [token for row in TEXTS for token in tokenizer(row["text"], add_special_tokens=False)["input_ids"]]

    def test_join_cuts_everything_into_windows(self, tiny_llama):
        items = self.made(tiny_llama, strategy="join", max_seq_len=6)
        whole = self.ids(tiny_llama)
        assert [inputs["input_ids"].tolist() for inputs, _ in items] == [whole[:6], whole[6:12], whole[12:18]]
        assert all((labels == inputs["input_ids"]).all() for inputs, labels in items)

    def test_batches_of_rows_do_not_change_the_windows(self, tiny_llama):
        one = self.made(tiny_llama, strategy="join", max_seq_len=4, processing_batch_size=1)
        all_at_once = self.made(tiny_llama, strategy="join", max_seq_len=4)
        assert [inputs["input_ids"].tolist() for inputs, _ in one] == [
            inputs["input_ids"].tolist() for inputs, _ in all_at_once
        ]

    def test_sliding_windows_label_only_what_is_new(self, tiny_llama):
        items = self.made(tiny_llama, strategy="join-sliding-window", max_seq_len=6, stride=2, max_samples=3)
        whole = self.ids(tiny_llama)
        assert [inputs["input_ids"].tolist() for inputs, _ in items] == [whole[at : at + 6] for at in (0, 2, 4)]
        assert items[0][1].tolist() == whole[:6]
        assert items[1][1].tolist() == [IGNORED_LABEL] * 4 + whole[6:8]

    @pytest.mark.parametrize("strategy", ["join-random", "line-by-line-random"])
    def test_random_strategies_follow_their_seed(self, tiny_llama, strategy):
        def drawn(seed: int) -> list[list[int]]:
            items = self.made(tiny_llama, strategy=strategy, max_seq_len=5, max_samples=6, random_seed=seed)
            return [inputs["input_ids"].tolist() for inputs, _ in items]

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)
        assert {len(ids) for ids in drawn(1)} == {5}

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_rows_are_filled_up_on_the_side_that_is_asked_for(self, tiny_llama, side):
        inputs, labels = self.made(tiny_llama, strategy="line-by-line", max_seq_len=8, padding_side=side)[2]
        filled = slice(0, 6) if side == "left" else slice(2, 8)
        assert inputs["attention_mask"].sum() == 2
        assert (inputs["attention_mask"][filled] == 0).all()
        assert (labels[filled] == IGNORED_LABEL).all()

    def test_short_rows_are_dropped(self, tiny_llama):
        kept = self.made(tiny_llama, strategy="line-by-line", max_seq_len=6, pad_to_max_len=False, drop_short_sequences=True)
        assert len(kept) == 2

    def test_template_columns_and_special_tokens(self, tiny_llama):
        rows = [{"a": "the cat", "b": "sat"}]
        by_template = self.made(tiny_llama, rows, strategy="line-by-line", max_seq_len=4, text_template="{b} {a}")
        by_columns = self.made(tiny_llama, rows, strategy="line-by-line", max_seq_len=4, text_cols=["b", "a"])
        assert by_template[0][0]["input_ids"].tolist() == by_columns[0][0]["input_ids"].tolist()
        with pytest.raises(DataUnavailable, match="text_template names 'c', and the data set has a, b"):
            self.made(tiny_llama, rows, strategy="line-by-line", text_template="{c}")

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"strategy": "join-sliding-window"}, "needs 'stride'"),
            ({"strategy": "join-random"}, "needs 'max_samples'"),
            ({"strategy": "joined"}, "'strategy': input should be"),
            ({"max_seqlen": 3}, "did you mean 'max_seq_len'"),
            ({"strategy": "line-by-line", "drop_short_sequences": True}, "exclude one another"),
        ],
    )
    def test_options_that_are_wrong(self, options, told):
        with pytest.raises(InvalidRecipe, match=told):
            text_generation_options(options)

    def test_too_little_text(self, tiny_llama):
        with pytest.raises(DataUnavailable, match="not enough text for one sequence of 64 tokens"):
            self.made(tiny_llama, max_seq_len=64)

    def test_function_of_the_script_formats_rows(self, folder, tiny_llama):
        (folder / "user_script.py").write_text("def told(row):\n    return row['sentence1'] + ' ' + row['sentence2']\n")
        data = config(
            user_script="user_script.py",
            load_dataset_config={"data_name": "json", "data_files": "pairs.jsonl"},
            pre_process_data_config={"strategy": "line-by-line", "max_seq_len": 6, "text_formatting_func": "told"},
        )
        assert len(list(opened(data, folder, tiny_llama))) == 3


def test_words_with_labels_become_tokens_with_labels(tmp_path, tiny_classifier):
    (tmp_path / "words.json").write_text(json.dumps({"tokens": ["the", "cat", "sat"], "ner_tags": [0, 3, 1]}))
    model = replace(tiny_classifier, task="token-classification")
    data = config(
        load_dataset_config={"data_name": "json", "data_files": "words.json"},
        pre_process_data_config={"input_cols": ["tokens"], "label_col": "ner_tags"},
    )
    batches = opened(data, tmp_path, model)
    ((inputs, labels),) = batches.labelled()
    assert inputs["input_ids"].shape == labels.shape == (1, 3)
    assert labels.tolist() == [[0, 3, 1]]
    assert batches.post_process(np.eye(3)[None]).tolist() == [[0, 1, 2]]


class TestSmokeRows:
    def test_go_through_the_same_pre_processing(self, tmp_path, tiny_classifier):
        data = config(
            load_dataset_config={"data_name": "glue", "subset": "mrpc", "split": "validation"},
            pre_process_data_config={"input_cols": ["sentence1", "sentence2"], "max_length": 20, "padding": "max_length"},
            dataloader_config={"batch_size": 2},
        )
        batches = opened(data, tmp_path, tiny_classifier, smoke=True)
        pairs = list(batches.labelled())
        assert batches.synthetic
        assert pairs[0][0]["input_ids"].shape == (2, 20)
        assert pairs[0][0]["token_type_ids"].max() == 1
        assert set(np.concatenate([labels for _, labels in pairs]).tolist()) <= {0, 1, 2}

    def test_are_chats_where_chats_are_asked_for(self, tmp_path, tiny_llama):
        template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        data = config(
            load_dataset_config={"data_name": "some/chats", "split": "train"},
            pre_process_data_config={"chat_template": template, "strategy": "line-by-line", "max_seq_len": 16},
        )
        assert next(iter(opened(data, tmp_path, tiny_llama, smoke=True)))["input_ids"].shape == (1, 16)

    def test_fit_the_tiny_model(self, tmp_path, tiny_llama):
        data = config(
            load_dataset_config={"data_name": "wikitext", "subset": "wikitext-2-raw-v1", "split": "train[:1000]"},
            pre_process_data_config={"strategy": "join-random", "max_seq_len": 2048, "max_samples": 512, "random_seed": 42},
        )
        found = list(opened(data, tmp_path, tiny_llama, smoke=True))
        assert {batch["input_ids"].shape for batch in found} == {(1, 128)}  # the longest that the model has positions for
        assert len(found) <= 8


@pytest.fixture(scope="module")
def cached_llama(tiny_llama, tmp_path_factory):
    output, scratch = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("scratch")
    builder = table.get("ModelBuilder")
    context = PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    built = builder.apply(tiny_llama, builder.options.model_validate({"precision": "fp32"}), context)
    return ModelHandle("onnx", built.folder, "model.onnx", "text-generation")


class TestContainers:
    @pytest.mark.parametrize(
        ("container", "tokens", "cached"),
        [("TransformersPromptDummyDataContainer", 8, 0), ("TransformersTokenDummyDataContainer", 1, 8)],
    )
    def test_prompts_and_single_tokens_run(self, tmp_path, cached_llama, container, tokens, cached):
        data = config(type=container, load_dataset_config={"max_samples": 2}, dataloader_config={"batch_size": 3})
        found = list(opened(data, tmp_path, cached_llama))
        assert len(found) == 2
        assert found[0]["input_ids"].shape == (3, tokens)
        assert found[0]["attention_mask"].shape == (3, tokens + cached)
        assert found[0]["past_key_values.0.key"].shape[2] == cached
        session = onnxruntime.InferenceSession(cached_llama.path, providers=["CPUExecutionProvider"])
        assert session.run(["logits"], found[0])[0].shape[:2] == (3, tokens)

    def test_texts_get_an_empty_cache(self, folder, cached_llama):
        feed = Feed.of(cached_llama)
        assert feed.past_length == 0  # its attention is grouped
        ids = np.ones((2, 5), np.int64)
        fitted = feed.fitted({"input_ids": ids, "attention_mask": ids})
        assert fitted["past_key_values.1.value"].shape == (2, 2, 0, 16)

    def test_plain_attention_gets_one_hidden_position(self):
        expected = (
            GraphInput("input_ids", "int64", ("b", "s")),
            GraphInput("attention_mask", "int64", ("b", "t")),
            GraphInput("position_ids", "int64", ("b", "s")),
            GraphInput("past_key_values.0.key", "float32", ("b", 2, "p", 4)),
        )
        feed = Feed(tuple(one.name for one in expected), expected, 1)
        ids = np.ones((1, 3), np.int64)
        fitted = feed.fitted({"input_ids": ids, "attention_mask": ids})
        assert fitted["attention_mask"].tolist() == [[0, 1, 1, 1]]
        assert fitted["position_ids"].tolist() == [[0, 1, 2]]
        assert fitted["past_key_values.0.key"].shape == (1, 2, 1, 4)

    def test_raw_files(self, tmp_path, exported_bert):
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            (tmp_path / "raw" / name).mkdir(parents=True)
            for at in range(2):
                np.full((1, 4), at, np.int64).tofile(tmp_path / "raw" / name / f"{at}.bin")
        np.save(tmp_path / "raw" / "labels.npy", np.array([3, 4]))
        names = ["input_ids", "attention_mask", "token_type_ids"]
        load = {
            "data_dir": "raw", "input_names": names, "input_shapes": [[1, 4]] * 3, "input_types": ["int64"] * 3,
            "annotations_file": "labels.npy",
        }  # fmt: skip
        pairs = list(opened(config(type="RawDataContainer", load_dataset_config=load), tmp_path, exported_bert).labelled())
        assert [inputs["input_ids"].tolist() for inputs, _ in pairs] == [[[0] * 4], [[1] * 4]]
        assert [int(labels) for _, labels in pairs] == [3, 4]
        load["input_shapes"] = [[1, 5]] * 3
        with pytest.raises(DataUnavailable, match="does not hold int64 values of the shape"):
            opened(config(type="RawDataContainer", load_dataset_config=load), tmp_path, exported_bert)

    def test_no_data_set_at_all_says_so(self, tmp_path, exported_bert):
        data = config(type="DataContainer", load_dataset_config={"type": "local_dataset"})
        with pytest.raises(DataUnavailable, match="loads no data set"):
            list(opened(data, tmp_path, exported_bert))
