"""The digest of data follows everything beside the configuration that decides what the data is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.data.local_files import data_digest
from runner.errors import DataUnavailable
from runner.recipe.config import DataConfig


def config(**parts: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "data", **parts})


def test_the_digest_follows_script_files_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("the cat sat\n")
    (tmp_path / "user_script.py").write_text("x = 1\n")
    data = config(user_script="user_script.py", load_dataset_config={"type": "sentences", "path": "sentences.txt"})
    seen = [data_digest(data, tmp_path)]
    assert data_digest(data, tmp_path) == seen[0]
    (tmp_path / "sentences.txt").write_text("other\n")
    seen.append(data_digest(data, tmp_path))
    (tmp_path / "user_script.py").write_text("x = 2\n")
    seen.append(data_digest(data, tmp_path))
    seen.append(data_digest(data.model_copy(update={"name": "b"}), tmp_path))
    assert len(set(seen)) == 4


def test_the_digest_follows_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data = config(load_dataset_config={"type": "images", "path": "images"})
    before = data_digest(data, tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    assert data_digest(data, tmp_path) != before


def test_missing_script(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="no user script"):
        data_digest(config(user_script="absent.py"), tmp_path)


def test_path_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.txt").write_text("x")
    with pytest.raises(DataUnavailable, match="leads out"):
        data_digest(config(load_dataset_config={"type": "sentences", "path": "../outside.txt"}), tmp_path / "inside")
