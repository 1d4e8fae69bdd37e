"""show tells what a recipe is, and where each value of its config comes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "smollm2-135m-instruct"


pytestmark = pytest.mark.usefixtures("own_catalogue")


def test_show_tells_where_each_value_comes_from(as_json: Callable[..., Any]) -> None:
    shown = as_json("show", RECIPE, "--set", "passes.build.precision=int8")
    assert shown["variant"] == "cpu-int4"
    assert shown["config"]["passes"]["build"]["options"]["precision"] == "int8"
    origins = shown["origins"]
    assert origins["passes.build.precision"] == "--set passes.build.precision=int8"
    assert origins["input_model.model_path"].endswith("olive_config.json:4")
    assert origins["input_model.model_script"] == "default"


def test_show_leaves_defaults_out_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", f"{RECIPE}/cpu-fp32"]) == 0
    short = capsys.readouterr().out
    assert "olive_config.cpu-fp32.json:4" in short
    assert "input_model.model_script" not in short
    assert run_command(["show", f"{RECIPE}/cpu-fp32", "--all"]) == 0
    assert "input_model.model_script" in capsys.readouterr().out


def test_show_of_a_config_without_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.json"
    config.write_text(
        '{"input_model": {"type": "hfmodel", "config": {"model_path": "a/b"}}, "clean_cache": true, "passes": {}}',
        encoding="utf-8",
    )
    assert run_command(["show", str(config)]) == 0
    told = capsys.readouterr().out
    assert '"HfModel"' in told
    assert "note: " in told and "clean_cache" in told


def test_show_tells_facts_with_their_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", "microsoft/Phi-4-mini-instruct"]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert "parameters   3.84B  [architecture, checked 2026-11-24]" in lines
    assert "context      131,072 tokens  [config.json, not checked]" in lines
    assert "licence      MIT (permissive)  [model card, not checked]" in lines
    assert any(line.startswith("maintainers  @") for line in lines)
    assert any(line.startswith("status       tested: every variant passes its smoke run") for line in lines)
    rows = [line.split() for line in lines if line.startswith(("* ", "  c", "  d"))]
    assert rows[0][:4] == ["*", "cpu-int4", "cpu", "int4"]
    assert {row[1] for row in rows[1:]} == {"cpu", "cuda", "dml"}


def test_show_tells_aliases_and_why_a_recipe_is_deprecated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "vision" / "resnet-50"
    shutil.copytree(ROOT / "recipes" / "resnet" / "resnet-50", folder)
    info = folder / "info.yml"
    changed = "aliases: [rn50]\nlifecycle: {status: deprecated, reason: take vit-base-patch16-224}"
    info.write_text(info.read_text(encoding="utf-8").replace("lifecycle: {status: tested}", changed), encoding="utf-8")
    assert run_command(["show", "RN50/cpu-int8-static-qdq", "--catalog", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "deprecated: take vit-base-patch16-224" in lines
    assert "aliases      rn50" in lines
    assert any(line.startswith("* cpu-int8-static-qdq") for line in lines)
