"""A clone of its own for tests of verbs that write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("bert/bert-base-uncased", "minilm/all-minilm-l6-v2", "resnet/resnet-50", "vit/vit-base-patch16-224")


@pytest.fixture
def small_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a clone with a few recipes, without git, and makes it the current folder."""
    clone = tmp_path / "clone"
    for name in ("templates", "constraints", *(f"recipes/{recipe}" for recipe in RECIPES)):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("models", "__pycache__"))
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(clone)
    return clone
