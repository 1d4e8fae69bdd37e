"""Weights that are written file by file: what is written, what is linked, and what lies where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from runner.models import sharded_weights
from runner.models.sharded_weights import ShardedWeights, mapped_weights, write_zeros


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_every_weight_arrives(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("weights")
    tensors = {f"w{at}": torch.randn(size, 3) for at, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_weights, "_FULL", 400)
        shards = ShardedWeights(folder)
        written: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            written |= shards.put({name: tensor})
        assert shards.names == tensors.keys()
        shards.finish()
    assert all(torch.equal(written[name], tensors[name]) for name in written)
    found = mapped_weights(folder)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        assert all(name in load_file(folder / file) for name, file in places.items())
        assert places.keys() == tensors.keys()
    else:
        assert [file.name for file in folder.iterdir()] == ["model.safetensors"]


def test_what_belongs_together_lies_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_weights, "_FULL", 400)
    shards = ShardedWeights(tmp_path)
    shards.put({"a": torch.zeros(60)})
    assert shards.put({"b": torch.zeros(30), "c": torch.zeros(30)}).keys() == {"a"}
    shards.finish()
    assert sorted(map(sorted, (load_file(file) for file in tmp_path.glob("*.safetensors")))) == [["a"], ["b", "c"]]


def test_files_that_stay_as_they_are_are_linked(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    save_file({"a": torch.randn(600, 600), "b": torch.randn(3)}, source / "model-00001-of-00002.safetensors")
    save_file({"c": torch.randn(3), "d": torch.randn(3)}, source / "model-00002-of-00002.safetensors")
    stay = {name: one for name, one in read(source).items() if name != "d"}
    shards = ShardedWeights(folder)
    left = shards.take_over(source, stay)
    assert left.keys() == {"c"}
    shards.put(left)
    shards.finish()
    assert read(folder).keys() == {"a", "b", "c"}
    linked = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["a"]
    assert linked.samefile(source / "model-00001-of-00002.safetensors")


def test_zeros_take_no_room(tmp_path: Path) -> None:
    write_zeros(tmp_path / "zeros.safetensors", "a.weight", (3000, 1000))
    found = read(tmp_path)
    assert found.keys() == {"a.weight"}
    assert (found["a.weight"].shape, found["a.weight"].dtype) == ((3000, 1000), torch.bfloat16)
    assert not found["a.weight"].any()
    status = (tmp_path / "zeros.safetensors").stat()
    assert status.st_size > 6_000_000
    if hasattr(status, "st_blocks"):
        assert status.st_blocks * 512 < 100_000
