"""A smoke run starts from a tiny model of the architecture that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import InvalidRecipe
from runner.models.digest import DigestMemo
from runner.models.smoke_source import smoke_source
from runner.models.source import Access
from runner.recipe.config import InputModel


@pytest.fixture(autouse=True)
def _empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def no_network(folder: Path) -> Access:
    return Access(folder / "models", DigestMemo(folder / "digests.json"), offline=True)


def test_the_twin_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe):
        smoke_source(InputModel(type="HfModel", model_path="Nobody/NothingAtAll"), tmp_path, no_network(tmp_path))


def test_twins_differ_by_id(tmp_path: Path) -> None:
    one, other = (
        smoke_source(InputModel(type="HfModel", model_path=name), tmp_path, no_network(tmp_path))
        for name in ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
    )
    assert one.step is not None
    assert one.step[0] == "TinyTwin"
    assert one.digest != other.digest
