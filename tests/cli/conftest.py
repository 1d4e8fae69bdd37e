"""The clone itself for tests of verbs that look, one of its own for verbs that write, and what a verb prints as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("bert/bert-base-uncased", "minilm/all-minilm-l6-v2", "resnet/resnet-50", "vit/vit-base-patch16-224")


@pytest.fixture
def own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this clone the current folder, and its catalogue the one that verbs look into."""
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Returns a function that runs a verb with --json and returns what it printed."""

    def run(*arguments: str) -> Any:
        assert run_command([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


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
