"""ls lists what there is, narrows it, and says what it assumed and what there is instead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from runner.catalog.discover import list_facts
from runner.cli import run_command
from runner.cli.listing import family_lines

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "smollm2-135m-instruct"
LISTED, _ = list_facts(ROOT / "recipes")


pytestmark = pytest.mark.usefixtures("own_catalogue")


def _ids(as_json: Callable[..., Any], *arguments: str) -> list[str]:
    return [recipe["id"] for recipe in as_json("ls", *arguments)]


def _broken(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["ls", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_filters(as_json: Callable[..., Any]) -> None:
    assert {RECIPE, "all-minilm-l6-v2", "bert-base-uncased", "resnet-50"} <= set(_ids(as_json))
    assert RECIPE in _ids(as_json, "--task", "text-generation")
    assert "resnet-50" not in _ids(as_json, "--task", "text-generation")
    assert _ids(as_json, "smollm2", "chat") == [RECIPE]
    assert _ids(as_json, "--family", "minilm") == ["all-minilm-l6-v2"]
    assert _ids(as_json, "xyzzyx") == []
    assert {recipe["licence"] for recipe in as_json("ls", "--license", "apache")} == {"Apache-2.0"}
    variants = as_json("ls", "smollm2", "--precision", "int8")[0]["variants"]
    assert [variant["name"] for variant in variants] == ["cpu-int8"]
    assert all(recipe["gated"] for recipe in as_json("ls", "--gated"))
    assert not any(recipe["gated"] for recipe in as_json("ls", "--not-gated"))
    measured = {path.parents[1].name for path in (ROOT / "recipes").glob("*/*/results/*.json")}
    assert set(_ids(as_json, "--measured")) == measured >= {"all-minilm-l6-v2", RECIPE}
    assert all(recipe["download_mb"] <= 500 for recipe in as_json("ls", "--max-download", "500MB"))


def test_conditions_together(as_json: Callable[..., Any]) -> None:
    asked = ["--target", "cuda", "--precision", "int4", "--license", "permissive", "--task", "text-generation"]
    found = as_json("ls", "qwen", *asked, "--max-memory", "3GB")
    assert "qwen2.5-0.5b-instruct" in [recipe["id"] for recipe in found]
    for recipe in found:
        assert (recipe["licence_category"], recipe["task"]) == ("permissive", "text-generation")
        for variant in recipe["variants"]:
            assert (variant["target"], variant["precision"]) == ("cuda", "int4")
            assert variant["peak_memory_bytes"] <= 3e9
    more = _ids(as_json, "qwen", *asked, "--max-memory", "40GiB")
    assert {recipe["id"] for recipe in found} < set(more)
    assert "qwen2.5-3b-instruct" not in more  # for research only


def test_misspelt_words_find_and_say_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "qwne"]) == 0
    told = capsys.readouterr()
    assert "qwen3-4b" in told.out
    assert told.err.splitlines() == ["nothing is called 'qwne': this is what 'qwen' finds"]
    assert run_command(["ls", "lama"]) == 0
    told = capsys.readouterr()
    assert "llama-3.2-1b-instruct" in told.out
    assert told.err == ""


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["--task", "fill-masks"], "no recipe has the task 'fill-masks'", "did you mean 'fill-mask'?"),
        (["--family", "phii"], "no recipe has the family 'phii'", "did you mean 'phi'? there are bert, "),
        (["--precision", "nf4"], "no recipe has the precision 'nf4'", "there are bf16, fp16, fp32"),
        (["--license", "permisive"], "no recipe has the licence 'permisive'", "did you mean 'permissive'?"),
        (["--license", "foo"], "no recipe has the licence 'foo'", "categories: permissive, copyleft"),
        (["--target", "cudda"], "there is no target 'cudda'", "did you mean 'cuda'?"),
        (["--max-memory", "8"], "--max-memory: a size reads 8GB", "give a number and its unit"),
        (["--max-download", "lots"], "--max-download: a size reads 8GB", "give a number and its unit"),
    ],
)
def test_what_no_recipe_has_is_an_error_that_tells_what_there_is(
    arguments: list[str], cause: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _broken(capsys, *arguments)
    assert cause in told and remedy in told


def test_condition_that_excludes_everything_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "whisper", "--target", "cuda", "--precision", "int4"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert lines[0] == "no recipe matches whisper --target cuda --precision int4"
    assert any(line.startswith("    without --precision int4: 7 recipes (whisper-base, ") for line in lines)
    assert any(line.startswith("    without --target cuda: ") for line in lines)


def test_plain_columns_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "smollm2"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["FAMILY", "RECIPE", "TASK", "PARAMETERS", "LICENCE", "PRECISIONS"]
    assert row.split() == [
        "smollm",
        RECIPE,
        "text-generation",
        "135M",
        "Apache-2.0",
        *["cpu", "int4", "int8", "fp32", "·", "cuda", "fp16", "bf16", "int4"],
    ]


def test_variants_into_a_pipe_are_names_that_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "smollm2", "--variants"]) == 0
    heading, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading == ["VARIANT", "DOWNLOAD", "MEMORY", "MEASURED", "CONFIG"]
    assert rows[0][:3] == [f"{RECIPE}/cpu-int4", "269", "MB"]
    files = ["olive_config.json", "olive_config.cpu-int8.json", "olive_config.cpu-fp32.json"]
    assert [row[-1] for row in rows if "/cpu-" in row[0]] == files


@pytest.mark.parametrize("room", [80, 120])
def test_families_fit_the_terminal_a_line_a_model(room: int) -> None:
    for family in {facts.family for facts in LISTED}:
        members = [facts for facts in LISTED if facts.family == family]
        heading, *lines = (click.unstyle(line) for line in family_lines(family, members, room))
        assert heading.startswith(family)
        assert max(map(len, (heading, *lines))) <= room
        assert [line.split()[0] for line in lines] == [facts.name for facts in members]


def test_deprecated_recipes_are_dimmed_and_marked(tmp_path: Path, as_json: Callable[..., Any]) -> None:
    for name in ("old", "new"):
        folder = tmp_path / "family" / name
        folder.mkdir(parents=True)
        status = "{status: deprecated, reason: take new}" if name == "old" else "{status: tested}"
        text = (ROOT / "recipes" / "resnet" / "resnet-50" / "info.yml").read_text(encoding="utf-8")
        text = text.replace("name: resnet-50", f"name: {name}", 1).replace(
            "lifecycle: {status: tested}", f"lifecycle: {status}"
        )
        (folder / "info.yml").write_text(text, encoding="utf-8")
    listed, problems = list_facts(tmp_path)
    assert problems == []
    _, new, old = family_lines("family", listed, 80)
    assert click.unstyle(old).startswith("old (deprecated)")
    assert old == click.style(click.unstyle(old), dim=True)
    assert "deprecated" not in new
    assert _ids(as_json, "--deprecated", "--catalog", str(tmp_path)) == ["old"]
    assert _ids(as_json, "--not-deprecated", "--catalog", str(tmp_path)) == ["new"]


def test_json_tells_everything(as_json: Callable[..., Any]) -> None:
    (told,) = as_json("ls", "microsoft/phi-4-mini-instruct")
    assert told["provenance"]["parameters"] == {"source": "architecture", "checked": "2026-11-24"}
    assert told["lifecycle"] == {"status": "tested"}
    assert told["maintainers"] and told["sources"] == [{"hub": "microsoft/Phi-4-mini-instruct"}]
    assert told["variants"][0]["pipeline"] == "genai-cpu-int4"
    assert told["variants"][0]["gates"] and not told["variants"][0]["measured"]


def test_another_catalogue_tells_what_it_cannot_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "family" / "broken").mkdir(parents=True)
    (tmp_path / "family" / "broken" / "info.yml").write_text("name: broken\nmodel: {id: a/b}\n", encoding="utf-8")
    assert run_command(["ls", "--catalog", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "not listed" in told.err and "missing-key" in told.err


def test_the_whole_catalogue_is_read_once() -> None:
    opened: list[str] = []
    listens = [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if listens and event == "open" and str(arguments[0]).startswith(str(ROOT / "recipes")):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)  # one that can only be silenced, never taken away
    list_facts(ROOT / "recipes")
    listens.clear()
    infos = [name for name in opened if name.endswith("info.yml")]
    assert len(infos) == len(set(infos)) == len(list((ROOT / "recipes").glob("*/*/info.yml")))
    assert len(opened) == len(set(opened))
