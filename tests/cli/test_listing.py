"""ls, show, passes and doctor say what is true, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from runner.cli import run_command
from runner.cli.listing import short_count
from runner.cli.tables import fitted_lines
from runner.passes.table import MODULES

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.chdir(ROOT)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run_command([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls_filters(capsys: pytest.CaptureFixture[str]) -> None:
    everything = {recipe["id"] for recipe in _json(capsys, "ls")}
    assert {RECIPE, "all-minilm-l6-v2", "bert-base-uncased", "resnet-50"} <= everything
    assert {recipe["id"] for recipe in _json(capsys, "ls", "--task", "text-generation")} >= {RECIPE}
    assert "resnet-50" not in {recipe["id"] for recipe in _json(capsys, "ls", "--task", "text-generation")}
    assert [recipe["id"] for recipe in _json(capsys, "ls", "smollm2", "chat")] == [RECIPE]
    variants = _json(capsys, "ls", "smollm2", "--precision", "int8")[0]["variants"]
    assert [variant["name"] for variant in variants] == ["cpu-int8"]
    assert {recipe["licence"] for recipe in _json(capsys, "ls", "--license", "apache")} == {"Apache-2.0"}
    assert [recipe["family"] for recipe in _json(capsys, "ls", "--family", "minilm")] == ["minilm"]
    assert _json(capsys, "ls", "no such words") == []


def test_ls_prints_plain_columns_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "smollm2"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["RECIPE", "TASK", "PARAMETERS", "LICENCE", "VARIANTS"]
    assert row.split()[:4] == [RECIPE, "text-generation", "135M", "Apache-2.0"]


def test_ls_of_another_catalogue_tells_what_it_cannot_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "family" / "broken").mkdir(parents=True)
    (tmp_path / "family" / "broken" / "info.yml").write_text("name: broken\n", encoding="utf-8")
    assert run_command(["ls", "--catalog", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "not listed" in told.err and "missing-key" in told.err


def test_show_tells_where_each_value_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _json(capsys, "show", RECIPE, "--set", "passes.build.precision=int8")
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


def test_passes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["name"] for one in _json(capsys, "passes", "ls")] == sorted(MODULES)
    shown = _json(capsys, "passes", "show", "modelbuilder")
    assert shown["name"] == "ModelBuilder"
    assert "precision" in shown["options"]["properties"]
    assert run_command(["passes", "show", "ModelBuilder"]) == 0
    told = capsys.readouterr().out
    assert "fp32 | fp16 | bf16 | int8 | int4" in told
    assert "int4_block_size is block_size today" in told


def test_doctor_knows_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    told = _json(capsys, "doctor")
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["memory_gb"] > 0.5
    assert told["packages"]["torch"]
    targets = {state["name"]: state for state in told["targets"]}
    assert targets["cpu"]["usable"]
    assert set(targets) == {"cpu", "cuda", "directml"}
    for state in targets.values():
        assert state["usable"] or (state["cause"] and state["remedy"])


def test_doctor_tells_clashing_wheels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("runner.cli.doctor.installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    assert run_command(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "onnxruntime and onnxruntime-gpu overwrite one another" in told
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told


def test_doctor_does_not_send_people_to_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("doctor" in (state["remedy"] or "") for state in _json(capsys, "doctor")["targets"])


def test_pass_is_told_in_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    for name in MODULES:
        assert run_command(["passes", "show", name]) == 0
        told = capsys.readouterr().out
        assert "; \n" not in told
        assert "mapping to mapping" not in told


def test_ls_without_a_match_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "--task", "fill-masks"]) == 0
    assert "no recipe has the task 'fill-masks': did you mean 'fill-mask'?" in capsys.readouterr().err


@pytest.mark.parametrize("room", [40, 80, 200])
def test_table_breaks_no_word(room: int) -> None:
    columns = ("recipe", "task", "parameters", "variants")
    rows = [
        ("all-minilm-l6-v2", "feature-extraction", "22.7M", "cpu-fp32, cpu-int8-dynamic, cpu-int8-static, cuda-fp16"),
        ("x", "fill-mask", "1M", "cpu-fp32"),
    ]
    lines = [click.unstyle(line) for line in fitted_lines(columns, rows, room, ("parameters",))]
    assert max(map(len, lines)) <= room
    assert " ".join(lines).split() == " ".join(" ".join(row) for row in (columns, *rows)).split()


@pytest.mark.parametrize(
    ("number", "text"),
    [(134_515_008, "135M"), (7_000_000_000, "7B"), (1_540_000_000, "1.54B"), (22_713_216, "22.7M"), (900, "900")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert short_count(number) == text
