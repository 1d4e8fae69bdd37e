"""passes lists the passes, and shows the options of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.passes.table import MODULES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.chdir(ROOT)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run_command([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_passes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["name"] for one in _json(capsys, "passes", "ls")] == sorted(MODULES)
    shown = _json(capsys, "passes", "show", "modelbuilder")
    assert shown["name"] == "ModelBuilder"
    assert "precision" in shown["options"]["properties"]
    assert run_command(["passes", "show", "ModelBuilder"]) == 0
    told = capsys.readouterr().out
    assert "fp32 | fp16 | bf16 | int8 | int4" in told
    assert "int4_block_size is block_size today" in told


def test_pass_is_told_in_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    for name in MODULES:
        assert run_command(["passes", "show", name]) == 0
        told = capsys.readouterr().out
        assert "; \n" not in told
        assert "mapping to mapping" not in told
