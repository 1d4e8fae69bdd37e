"""render and schema: what they write, what they find, and their exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a copy of what a clone holds of recipes, and makes it the current folder."""
    for name in ("templates", "constraints", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("models", "__pycache__"))
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_render_writes_what_differs_and_check_shows_it(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["render"]) == 0
    assert run_command(["render", "--check"]) == 0
    config = clone / "recipes" / "bert" / "bert-base-uncased" / "olive_config.json"
    original = config.read_text(encoding="utf-8")
    config.write_text(original.replace("fill-mask", "fill-the-mask"), encoding="utf-8")
    capsys.readouterr()
    assert run_command(["render", "--check"]) == 2
    told = capsys.readouterr()
    assert '-    "task": "fill-the-mask"' in told.out
    assert '+    "task": "fill-mask"' in told.out
    assert config.read_text(encoding="utf-8") != original
    assert run_command(["render", "bert-base-uncased"]) == 0
    assert config.read_text(encoding="utf-8") == original


def test_render_makes_a_new_variants_files(clone: Path) -> None:
    info = clone / "recipes" / "bert" / "bert-base-uncased" / "info.yml"
    text = info.read_text(encoding="utf-8").replace("olive_config.cpu-int8-dynamic.json", "olive_config.other.json")
    info.write_text(text, encoding="utf-8")
    assert run_command(["render", "bert-base-uncased"]) == 0
    assert (info.parent / "olive_config.other.json").is_file()


def test_folder_outside_the_catalogue_is_linted_and_rendered(
    clone: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path_factory.mktemp("alone") / "bert-base-uncased"
    shutil.copytree(clone / "recipes" / "bert" / "bert-base-uncased", alone)
    monkeypatch.chdir(alone)
    assert run_command(["lint", "."]) == 0
    assert "1 recipe checked, 0 to mend" in capsys.readouterr().out
    assert run_command(["render", "--check", "."]) == 0
    info = alone / "info.yml"
    pipeline = "    pipeline: encoder-cpu-fp32\n"
    text = info.read_text(encoding="utf-8").replace(pipeline, f"{pipeline}    settings:\n      tidi: {{}}\n")
    info.write_text(text, encoding="utf-8")
    line = text.partition("tidi:")[0].count("\n") + 1
    capsys.readouterr()
    assert run_command(["lint", "."]) == 2
    assert f"info.yml:{line}: names-are-known" in capsys.readouterr().out
    assert run_command(["render", "."]) == 2
    told = capsys.readouterr().err
    assert f"info.yml:{line}: unknown-setting" in told
    assert "did you mean 'tidy'?" in told


def test_schema_writes_and_checks(tmp_path: Path) -> None:
    assert run_command(["schema", "--check", "--output", str(tmp_path)]) == 2
    assert run_command(["schema", "--output", str(tmp_path)]) == 0
    assert run_command(["schema", "--check", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"info.schema.json", "olive_config.schema.json"}


def test_committed_schemas_and_docs_are_todays() -> None:
    import subprocess
    import sys

    assert run_command(["schema", "--check", "--output", str(ROOT / "docs" / "schema")]) == 0
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
