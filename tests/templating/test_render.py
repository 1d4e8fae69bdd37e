"""Rendering: errors with their line, a sandbox, and files that are compared to the letter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.errors import InvalidRecipe
from runner.recipe.info import read_info
from runner.templating.environment import PAGE_WIDTH, pretty_json, render
from runner.templating.recipe import Clone, Rendering, clone_of, packages_of, render_config, render_recipe
from runner.templating.results import figure, results_table

ROOT = Path(__file__).resolve().parents[2]
MINILM = ROOT / "recipes" / "minilm" / "all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("template", "line", "cause"),
    [
        ("one\n{{ nowhere }}\n", 2, "'nowhere' is undefined"),
        ("one\ntwo\n{% if %}\n", 3, "Expected an expression"),
        ("{{ known.missing }}", 1, "no attribute 'missing'"),
        ("a\n\n\n{{ ''.__class__.__mro__ }}", 4, "unsafe"),
        ("{{ 1 / 0 }}", 1, "division"),
        ("{% include 'gone.j2' %}", None, "there is no template 'gone.j2'"),
    ],
)
def test_errors_tell_file_and_line(tmp_path: Path, template: str, line: int | None, cause: str) -> None:
    (tmp_path / "x.j2").write_text(template, encoding="utf-8")
    with pytest.raises(InvalidRecipe) as caught:
        render(tmp_path, "x.j2", {"known": {}})
    problem = caught.value.problems[0]
    assert cause in problem.cause
    assert problem.place is not None and problem.place.line == line
    if line:
        assert problem.place.file.endswith("x.j2")


def test_pretty_json_is_json_and_keeps_to_the_page() -> None:
    value = {"a": {"b": [{"c": number, "text": "ä" * 20} for number in range(5)], "short": [1, 2]}, "empty": {}}
    text = pretty_json(value)
    assert json.loads(text) == value
    assert max(map(len, text.splitlines())) <= PAGE_WIDTH
    assert '"short": [1, 2]' in text


def test_pipeline_that_gives_no_json_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    (tmp_path / "templates" / "pipelines" / "encoder.json.j2").write_text('{"a": 1,}', encoding="utf-8")
    info, _ = read_info(MINILM / "info.yml")
    with pytest.raises(InvalidRecipe, match="bad-rendering") as caught:
        render_config(info, info.recipes[0], Clone(tmp_path))
    assert "encoder.json.j2" in str(caught.value)


def test_rendering_tells_its_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    rendering = Rendering(path, "one\ntwo\n")
    assert rendering.difference() is not None
    rendering.write()
    assert rendering.difference() is None
    path.write_text("one\n2\n", encoding="utf-8")
    assert "-2\n+two\n" in str(rendering.difference())


def test_settings_reach_the_config(tmp_path: Path) -> None:
    info, _ = read_info(MINILM / "info.yml")
    static = next(variant for variant in info.recipes if variant.name == "cpu-int8-static")
    config = json.loads(render_config(info, static, clone_of(MINILM)))
    quantize = config["passes"]["quantize"]
    assert quantize["type"] == "OnnxStaticQuantization"
    assert {key: quantize[key] for key in static.settings["static"]} == static.settings["static"]
    assert config["data_configs"][0]["name"] == quantize["data_config"]


def test_requirements_name_what_the_recipe_needs() -> None:
    info, _ = read_info(ROOT / "recipes" / "smollm" / "smollm2-135m-instruct" / "info.yml")
    assert {"onnxruntime-genai", "gguf", "accelerate"} <= set(packages_of(info))
    info, _ = read_info(MINILM / "info.yml")
    assert not {"onnxruntime-genai", "gguf"} & set(packages_of(info))


def test_recipe_without_pipeline_is_kept_by_hand(tmp_path: Path) -> None:
    info, _ = read_info(MINILM / "info.yml")
    by_hand = info.model_copy(update={"recipes": [one.model_copy(update={"pipeline": None}) for one in info.recipes]})
    assert render_recipe(MINILM, "minilm", by_hand, clone_of(MINILM)) == []


RESULTS = {
    "variant": "cpu-int8",
    "host": "epyc-2c",
    "threads": 2,
    "date": "2026-01-31T10:00:00Z",
    "smoke": False,
    "environment": {"cpu": "A processor", "flags": ["AVX2"], "packages": {"onnxruntime": "1.2.3", "torch": "4.5.6"}},
    "rows": [
        {"name": "latency", "unit": "ms", "optimised": {"value": 12.34}, "ratio": {"value": 0.5}},
        {"name": "cosine", "unit": "", "optimised": {"value": 0.99312}, "ratio": None},
        {"name": "size", "unit": "bytes", "optimised": {"value": 22_500_000}, "ratio": {"value": 0.25}},
    ],
}


def test_results_become_a_table(tmp_path: Path) -> None:
    assert results_table(tmp_path, ["cpu-int8"]) is None
    (tmp_path / "results").mkdir()
    for variant, smoke in (("cpu-int8", False), ("cpu-fp32", True), ("gone", False)):
        content = {**RESULTS, "variant": variant, "smoke": smoke}
        (tmp_path / "results" / f"epyc-2c.{variant}.json").write_text(json.dumps(content), encoding="utf-8")
    table = results_table(tmp_path, ["cpu-fp32", "cpu-int8"])
    assert table is not None
    assert "A processor, 2 threads (AVX2); onnxruntime 1.2.3, torch 4.5.6; 2026-01-31" in table
    assert "|  | `cpu-int8` |" in table
    assert "| latency | 12.3 ms (0.50x) |" in table
    assert "| cosine | 0.9931 |" in table
    assert "| size on disk | 22 MB (0.25x) |" in table


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(174.6, "tokens/s", "175 tokens/s"), (0.00123, "s", "0.00123 s"), (20.3811, "", "20.38"), (1.2e9, "bytes", "1,200 MB")],
)
def test_figures_are_readable(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text
