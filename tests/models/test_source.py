"""The source model is found, checked for damage, or its absence is told with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

from runner.errors import ModelUnavailable, NotTrusted
from runner.models.checkpoint import check_safetensors
from runner.models.digest import DigestMemo, files_below
from runner.models.files import ExternalData, carry, read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.models.source import Access, Source, locate
from runner.recipe.config import InputModel
from runner.recipe.info import HubSource, PackageSource

PACKAGE = PackageSource(package="no-such-weights-anywhere==1.0", format="gguf", licence="MIT")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    save_file({"weight": np.arange(64, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def find(tmp_path: Path, path: str, *sources: HubSource | PackageSource, **rules: bool) -> Source:
    access = Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"), **rules)  # type: ignore[arg-type]
    return locate(InputModel(type="HfModel", model_path=path), sources, tmp_path, access)


def test_a_folder_is_taken_as_it_is_and_its_digest_follows_the_weights(tmp_path: Path, checkpoint: Path) -> None:
    found = find(tmp_path, "checkpoint")
    assert found.handle is not None
    assert found.handle.folder == checkpoint
    assert found.handle.attributes["model_type"] == "llama"
    save_file({"weight": np.ones(64, dtype=np.float32)}, checkpoint / "model.safetensors")
    assert find(tmp_path, str(checkpoint)).digest != found.digest


@pytest.mark.parametrize("keep", [0, 5, 40, 200])
def test_a_truncated_checkpoint_is_told_before_any_work(tmp_path: Path, checkpoint: Path, keep: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelUnavailable, match="model-damaged"):
        find(tmp_path, "checkpoint")


def test_garbage_is_no_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"\xff" * 64, b"\x10" + b"\0" * 7 + b"not json at all!", b"\x02" + b"\0" * 7 + b"[]"):
        file.write_bytes(content)
        with pytest.raises(ModelUnavailable):
            check_safetensors(file)


def test_a_missing_shard_is_named(tmp_path: Path, checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="model-00002-of-00002"):
        find(tmp_path, "checkpoint")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "no/such/folder", "~/nowhere-at-all"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelUnavailable, match="there is no folder"):
        find(tmp_path, path)


def test_offline_says_which_files_are_missing_and_where(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        find(tmp_path, "Org/Model", HubSource(hub="Org/Model"), PACKAGE, offline=True)
    text = str(caught.value)
    assert "*.safetensors of Org/Model" in text
    assert "no-such-weights-anywhere==1.0" in text
    assert "name a local folder" in text


def test_a_dry_run_fetches_nothing(tmp_path: Path) -> None:
    found = find(tmp_path, "Org/Model", HubSource(hub="Org/Model"), fetch=False)
    assert (found.handle, found.digest) == (None, None)
    assert "hub Org/Model" in found.told


def test_a_model_in_the_hub_cache_needs_no_network(tmp_path: Path, checkpoint: Path) -> None:
    repository = tmp_path / "hub" / "models--Org--Model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    checkpoint.rename(repository / "snapshots" / "abc123")
    assert "abc123" in find(tmp_path, "Org/Model", offline=True).told


def test_pickled_weights_need_trust(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(NotTrusted, match=r"pytorch_model\.bin"):
        find(tmp_path, "checkpoint")
    assert find(tmp_path, "checkpoint", trust=True).handle is not None


def test_code_of_a_checkpoint_needs_trust_unless_transformers_knows_the_architecture(tmp_path: Path, checkpoint: Path) -> None:
    config = {"model_type": "llama", "architectures": ["X"], "auto_map": {"AutoModel": "modeling_x.XModel"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert find(tmp_path, "checkpoint").handle is not None
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "homemade"}))
    with pytest.raises(NotTrusted, match=r"modeling_x\.py"):
        find(tmp_path, "checkpoint")


def test_a_folder_with_one_gguf_file_is_imported(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.Q4.gguf").write_bytes(b"GGUF")
    found = find(tmp_path, "weights")
    assert found.step == ("ImportGguf", {})
    assert found.handle is not None
    assert found.handle.kind == "gguf"


def find_onnx(tmp_path: Path, path: Path, **attributes: str) -> Source:
    access = Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"))
    return locate(InputModel(type="ONNXModel", model_path=str(path), **attributes), (), tmp_path, access)


@pytest.fixture
def crowded(tmp_path: Path, exported_bert: ModelHandle) -> Path:
    """A graph with its weights in a sub-folder, a companion, and files that are none of its business."""
    folder = tmp_path / "crowded"
    (folder / "weights").mkdir(parents=True)
    write_graph(read_graph(exported_bert.path), folder / "model.onnx", ExternalData(wanted=True, name="weights/w.bin"))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "weights" / "foreign.bin").write_bytes(b"x" * 100)
    (folder / "notes.txt").write_text("foreign")
    (folder / "receipt.json").write_text("{}")
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "other.onnx"}}}))
    return folder


def test_an_onnx_model_is_its_graph_its_weights_and_known_companions(tmp_path: Path, crowded: Path) -> None:
    for named in (crowded, crowded / "model.onnx"):
        handle = find_onnx(tmp_path, named).handle
        assert handle is not None
        assert handle.kind == "onnx"
        assert set(handle.files or ()) == {"model.onnx", "weights/w.bin", "config.json", "tokenizer.json"}
        assert ModelHandle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
        output = tmp_path / "outputs" / named.name
        carry(handle, output, graph=True)
        assert {name for name, _ in files_below(output)} == set(handle.files or ())


def test_the_digest_of_an_onnx_model_covers_what_is_taken(tmp_path: Path, crowded: Path) -> None:
    before = find_onnx(tmp_path, crowded).digest
    (crowded / "notes.txt").write_text("changed")
    (crowded / "weights" / "foreign.bin").write_bytes(b"y")
    assert find_onnx(tmp_path, crowded).digest == before
    weights = crowded / "weights" / "w.bin"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    assert find_onnx(tmp_path, crowded).digest != before


def test_a_genai_model_is_a_folder_whose_configuration_names_the_graph(tmp_path: Path, crowded: Path) -> None:
    (crowded / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
    asked, beside = find_onnx(tmp_path, crowded), find_onnx(tmp_path, crowded / "model.onnx")
    assert asked.handle is not None
    assert beside.handle is not None
    assert (asked.handle.kind, beside.handle.kind) == ("genai", "onnx")
    assert "genai_config.json" in (asked.handle.files or ())
    assert asked.digest != beside.digest


def test_weights_that_a_graph_names_and_that_are_not_there(tmp_path: Path, crowded: Path) -> None:
    (crowded / "weights" / "w.bin").unlink()
    with pytest.raises(ModelUnavailable, match=r"model-damaged.*weights/w\.bin"):
        find_onnx(tmp_path, crowded)


def test_a_graph_that_only_speaks_of_a_location(tmp_path: Path, exported_bert: ModelHandle) -> None:
    graph = read_graph(exported_bert.path)
    graph.metadata_props.add(key="location", value="x" * 300)
    write_graph(graph, tmp_path / "alone" / "model.onnx")
    handle = find_onnx(tmp_path, tmp_path / "alone").handle
    assert handle is not None
    assert handle.files == ("model.onnx",)


def test_a_text_model_without_a_tokenizer_is_damaged(tmp_path: Path, checkpoint: Path) -> None:
    access = Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"))
    model = InputModel(type="HfModel", model_path="checkpoint", task="text-generation-with-past")
    with pytest.raises(ModelUnavailable, match=r"model-damaged.*tokenizer\.json"):
        locate(model, (), tmp_path, access)
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert locate(model, (), tmp_path, access).handle is not None
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "tokenizer.json").write_text("{}")
    assert locate(model, (), tmp_path, access).handle is not None


@pytest.mark.parametrize("kind", ["HfModel", "ONNXModel"])
def test_a_path_that_is_not_there_may_stand_behind_the_flag(tmp_path: Path, kind: Literal["HfModel", "ONNXModel"]) -> None:
    access = Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"))
    with pytest.raises(ModelUnavailable, match="--model-path"):
        locate(InputModel(type=kind, model_path="/nowhere/at/all"), (), tmp_path, access)
