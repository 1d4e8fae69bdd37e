"""passes lists the passes, and shows the options of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.passes.table import MODULES

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_catalogue")


def test_passes_are_listed_and_shown(capsys: pytest.CaptureFixture[str], as_json: Callable[..., Any]) -> None:
    assert [one["name"] for one in as_json("passes", "ls")] == sorted(MODULES)
    shown = as_json("passes", "show", "modelbuilder")
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
