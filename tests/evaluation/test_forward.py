"""Loaded models, in this process and in one of their own."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from runner.errors import DataUnavailable, RecipeError, RunFailed
from runner.evaluation.forward import open_forward, outputs_of
from runner.evaluation.subject_process import SubjectProcess
from runner.models.handle import ModelHandle

CPU = "CPUExecutionProvider"


@pytest.fixture
def words() -> dict[str, np.ndarray]:
    ids = np.asarray([[2, 5, 7, 9, 3], [2, 6, 8, 3, 0]], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": ids * 0}


def test_both_sides_give_the_same_arrays_by_name(tiny_bert, exported_bert, words):
    theirs, ours = (outputs_of(open_forward(model, 2), words) for model in (tiny_bert, exported_bert))
    shared = set(theirs) & set(ours)
    assert "last_hidden_state" in shared
    mask = words["attention_mask"] > 0
    np.testing.assert_allclose(ours["last_hidden_state"][mask], theirs["last_hidden_state"][mask], atol=1e-4)


def test_token_types_are_added_where_only_the_graph_has_them(exported_bert, words):
    complete = outputs_of(open_forward(exported_bert, 2), words)
    del words["token_type_ids"]
    np.testing.assert_array_equal(
        outputs_of(open_forward(exported_bert, 2), words)["last_hidden_state"], complete["last_hidden_state"]
    )


def test_an_input_that_the_data_lacks_is_named(exported_resnet):
    with pytest.raises(DataUnavailable, match="'pixel_values'"):
        open_forward(exported_resnet, 2).prepare({"image": np.zeros((1, 3, 32, 32), np.float32)})


def test_a_graph_with_a_fixed_batch_takes_larger_ones_in_pieces(exported_resnet, tmp_path):
    import onnx

    graph = onnx.load(exported_resnet.path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.graph.value_info[:]
    onnx.save(graph, tmp_path / "model.onnx")
    fixed = open_forward(ModelHandle("onnx", tmp_path, "model.onnx", exported_resnet.task), 2)
    images = {"pixel_values": np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)}
    assert len(fixed.prepare(images)) == 3
    expected = outputs_of(open_forward(exported_resnet, 2), images)
    for name, array in outputs_of(fixed, images).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)


def test_a_subject_times_its_model_and_tells_its_memory(exported_bert, words, tmp_path):
    np.savez(tmp_path / "feed.npz", **words)
    feed = str(tmp_path / "feed.npz")
    with SubjectProcess(exported_bert, "optimised") as subject:
        assert subject.load(2, CPU, generates=False) > 0
        assert len(subject.ask("time", feed=feed, warmup=1, repeats=4, pause=0)["seconds"]) == 4
        assert len(subject.ask("turn", feed=feed, seconds=0.01, least=5)["seconds"]) >= 5
        names = subject.ask("outputs", feed=feed, into=str(tmp_path / "out.npz"))["names"]
        assert subject.ask("peak")["bytes"] > 10e6
    assert list(np.load(tmp_path / "out.npz").files) == names


def test_what_a_subject_cannot_load_is_told_as_it_would_be_here(exported_bert, tmp_path):
    shutil.copytree(exported_bert.folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"this is no graph")
    log = tmp_path / "log"
    with SubjectProcess(ModelHandle("onnx", tmp_path / "broken", "model.onnx"), "optimised", log) as subject:
        with pytest.raises(RecipeError, match=r"optimised: ONNX Runtime does not load model\.onnx"):
            subject.load(2, CPU, generates=False)
        with pytest.raises(RecipeError, match="load a model first"):
            subject.ask("turn", feed="x", seconds=1, least=1)
    assert "Traceback" in log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_subject_is_a_plain_error(exported_bert):
    with SubjectProcess(exported_bert, "optimised") as subject:
        subject.ask("peak")
        process = subject._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        with pytest.raises(RunFailed, match="optimised process was killed"):
            subject.ask("peak")


def test_a_subject_ends_with_its_block(exported_bert):
    with SubjectProcess(exported_bert, "optimised") as subject:
        process = subject._process
    assert process is not None
    assert process.poll() is not None


def test_nothing_of_a_subject_reaches_the_answers(tiny_bert, tmp_path: Path):
    """Libraries print while they load; answers are JSON all the same."""
    with SubjectProcess(tiny_bert, "baseline", tmp_path / "log") as subject:
        assert subject.load(1, CPU, generates=False) > 0
