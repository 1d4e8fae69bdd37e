"""What a model folder hands on, and how graphs are written and opened."""

from __future__ import annotations

import onnx
import pytest

from runner.errors import ModelUnavailable, RunFailed, TargetUnavailable
from runner.models import files
from runner.models.files import ExternalData, carry, external_files, read_graph, unlinked, write_graph
from runner.models.handle import ModelHandle
from runner.models.session import open_session


def test_large_files_are_links_and_small_ones_copies(exported_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LINKED_FROM", 5_000)
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    (source / "model.onnx").write_bytes(exported_bert.path.read_bytes())
    (source / "large.bin").write_bytes(b"x" * 10_000)
    (source / "sub").mkdir()
    (source / "sub" / "config.json").write_text("{}")
    carry(ModelHandle("onnx", source, "model.onnx"), output, exclude={"other"})
    assert (output / "large.bin").samefile(source / "large.bin")
    assert not (output / "sub" / "config.json").samefile(source / "sub" / "config.json")
    assert not (output / "model.onnx").exists()
    carry(ModelHandle("onnx", source, "model.onnx"), tmp_path / "whole", graph=True)
    assert (tmp_path / "whole" / "model.onnx").is_file()


def test_external_weights(exported_bert, tmp_path):
    graph = read_graph(exported_bert.path)
    write_graph(graph, tmp_path / "one" / "model.onnx", ExternalData(wanted=True, threshold=0))
    assert external_files(tmp_path / "one" / "model.onnx") == {"model.onnx.data"}
    write_graph(
        read_graph(exported_bert.path), tmp_path / "many" / "model.onnx", ExternalData(True, one_file=False, threshold=0)
    )
    assert len(external_files(tmp_path / "many" / "model.onnx")) > 5
    for folder in ("one", "many"):
        open_session(ModelHandle("onnx", tmp_path / folder, "model.onnx"), 1)


def test_large_graphs_are_split_unasked(exported_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1_000)
    write_graph(read_graph(exported_bert.path), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").is_file()


def test_damaged_graphs(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12\xff\xff\xff\xff\xff")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        read_graph(tmp_path / "model.onnx")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        read_graph(tmp_path / "absent.onnx")
    with pytest.raises(RunFailed, match="does not load"):
        open_session(ModelHandle("onnx", tmp_path, "model.onnx"), 1)


def test_missing_weights_file(exported_bert, tmp_path):
    write_graph(read_graph(exported_bert.path), tmp_path / "model.onnx", ExternalData(wanted=True, threshold=0))
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelUnavailable):
        read_graph(tmp_path / "model.onnx")
    with pytest.raises(RunFailed):
        open_session(ModelHandle("onnx", tmp_path, "model.onnx"), 1)


def test_provider_that_is_not_here(exported_bert):
    import onnxruntime

    if "DmlExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("DirectML is here")
    with pytest.raises(TargetUnavailable, match="DmlExecutionProvider"):
        open_session(exported_bert, 1, ["DmlExecutionProvider", "CPUExecutionProvider"])


def test_threads_are_those_asked_for(exported_bert):
    assert open_session(exported_bert, 1).get_session_options().intra_op_num_threads == 1


def test_graph_without_weights_is_small(exported_bert, tmp_path):
    write_graph(read_graph(exported_bert.path), tmp_path / "model.onnx", ExternalData(wanted=True, threshold=0))
    graph = read_graph(tmp_path / "model.onnx", weights=False)
    assert all(len(tensor.raw_data) < 256 for tensor in graph.graph.initializer)
    assert isinstance(graph, onnx.ModelProto)


def test_weights_in_a_file_with_several_hard_links_are_read(exported_bert, tmp_path):
    graph = read_graph(exported_bert.path)
    write_graph(graph, tmp_path / "one" / "model.onnx", ExternalData(wanted=True, threshold=0))
    (tmp_path / "two").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "two" / name).hardlink_to(tmp_path / "one" / name)
    linked = read_graph(tmp_path / "two" / "model.onnx")
    copy = unlinked(tmp_path / "two" / "model.onnx", tmp_path / "scratch")
    assert copy.parent == tmp_path / "scratch"
    assert onnx.load(copy) == linked
    assert unlinked(exported_bert.path, tmp_path / "scratch") == exported_bert.path
