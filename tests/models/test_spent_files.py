"""Disk space of files that are read for the last time: only what was read goes, and only of files that nobody else has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.models.spent_files import can_spend, held_by_these, spend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files with holes are made on Linux only")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "store" / "model.safetensors"
    file.parent.mkdir()
    save_file({"one": torch.full((600, 1000), 7.0), "other": torch.full((600, 1000), 5.0)}, file)
    os.sync()
    return file


def test_what_was_read_takes_no_room_any_more(weights: Path) -> None:
    if not can_spend(weights.parent):
        pytest.skip("this disk knows no files with holes")
    read, before = load_file(weights), weights.stat()
    spend(read["one"][100:], held_by_these(weights.parent))
    after = weights.stat()
    assert after.st_size == before.st_size
    assert (before.st_blocks - after.st_blocks) * 512 > 500 * 4000 - 3 * 4096
    again = load_file(weights)
    assert not again["one"][100:].any()
    assert (again["one"][:100] == 7).all() and (again["other"] == 5).all()
    assert list(weights.parent.iterdir()) == [weights]


def test_a_file_that_has_a_name_elsewhere_is_left_alone(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "mine.safetensors").hardlink_to(weights)
    assert not held_by_these(weights.parent)
    read = load_file(weights)
    spend(read["one"], held_by_these(weights.parent))
    spend(torch.ones(5000), held_by_these(weights.parent, tmp_path / "output"))  # lies in no file
    assert (load_file(weights)["one"] == 7).all()
    assert len(held_by_these(weights.parent, tmp_path / "output")) == 1
