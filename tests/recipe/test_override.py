"""Values of --set are typed like those of files, and blamed by their own text."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import UsageError
from tests.recipe.conftest import load, minimal, problems


def test_overrides_are_typed_and_keep_their_origin(tmp_path: Path) -> None:
    loaded = load(tmp_path, minimal(), "passes.p.coats=7", "output_dir=out", "engine.cache_dir=c")
    assert loaded.config.passes["p"].options.coats == 7
    assert (loaded.config.output_dir, loaded.config.cache_dir) == ("out", "c")
    leaves = {".".join(map(str, path)): node.origin.text for path, node in loaded.resolved().leaves()}
    assert leaves["passes.p.options.coats"] == "--set passes.p.coats=7"
    assert leaves["passes.p.options.colour"] == "default"
    assert leaves["input_model.model_path"].endswith("c0.json:4")


@pytest.mark.parametrize("written", ['{"type": "Paint", "coats": 7}', '{"type": "Paint", "options": {"coats": 7}}'])
def test_a_whole_step_is_set_as_files_write_it(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, minimal(), f"passes.p={written}").config.passes["p"].options.coats == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("passes.p.coats=many", "set by --set passes.p.coats=many"),
        ("passes.p.coat=1", "coats"),
        ("passes.p.type=Pain", "Paint"),
        ("input_model.model_pth=x", "model_path"),
    ],
)
def test_wrong_overrides_are_told_like_wrong_files(tmp_path: Path, override: str, words: str) -> None:
    assert words in " ".join(problems(tmp_path, minimal(), override))


@pytest.mark.parametrize(
    "override", ["nonsense", "=1", "passes.x.coats=1", "passs.p.coats=1", "input_model.type.deeper=1", "data_configs.4.name=x"]
)
def test_overrides_to_nowhere_are_usage_errors(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, minimal(data_configs=[{"name": "d"}]), override)


def test_a_text_option_takes_text_that_looks_like_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, minimal(), 'passes.p.note="12"').config.passes["p"].options.note == "12"
