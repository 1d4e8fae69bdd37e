"""`recipe lint`: what it prints, what it leaves out, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
RESNET = Path("recipes/resnet/resnet-50")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a clone with one recipe that nobody measured, which is the current folder."""
    for name in ("templates", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / RESNET, tmp_path / RESNET, ignore=shutil.ignore_patterns("results"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["render"]) == 0
    return tmp_path


def test_hints_are_counted_and_listed_when_asked_for(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_command(["lint"]) == 0
    short = capsys.readouterr().out.splitlines()
    (measured,) = [line for line in short if "is-measured" in line]
    assert measured.startswith("should is-measured: 4 x, such as recipes/resnet/resnet-50/info.yml:")
    assert run_command(["lint", "--hints"]) == 0
    assert capsys.readouterr().out.count("is-measured") == 4
    assert run_command(["lint", "--strict"]) == 2


def test_what_must_be_mended_is_always_listed_with_its_place_and_fix(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = clone / RESNET / "info.yml"
    info.write_text(info.read_text(encoding="utf-8").replace("pipeline: vision-", "pipeline: visoin-"), encoding="utf-8")
    capsys.readouterr()
    assert run_command(["lint"]) == 2
    lines = capsys.readouterr().out.splitlines()
    found = [at for at, line in enumerate(lines) if line.startswith(f"must   {RESNET.as_posix()}/info.yml:")]
    assert len(found) >= 4
    assert lines[found[0] + 1].startswith("    did you mean 'vision-")


def test_info_that_cannot_be_read_is_a_finding(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / RESNET / "info.yml").write_text("name: [\n", encoding="utf-8")
    capsys.readouterr()
    for words in ([], [str(RESNET)]):
        assert run_command(["lint", *words]) == 2
        assert "bad-yaml" in capsys.readouterr().out


def test_json_says_file_line_and_fix(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = clone / RESNET / "info.yml"
    info.write_text(info.read_text(encoding="utf-8").replace("licence:", "license:"), encoding="utf-8")
    capsys.readouterr()
    assert run_command(["lint", "resnet-50", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)
    unknown = next(finding for finding in findings if finding["rule"] == "unknown-key")
    assert Path(unknown["file"]) == info
    assert unknown["line"] and unknown["fix"] == "did you mean 'licence'?"


def test_overviews_are_checked_with_everything_but_not_with_one_recipe(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (clone / "recipes" / "README.md").open("a", encoding="utf-8") as page:
        page.write("by hand\n")
    capsys.readouterr()
    assert run_command(["lint", "resnet-50"]) == 0
    capsys.readouterr()
    assert run_command(["lint", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)
    assert [one["rule"] for one in findings if one["severity"] == "must"] == ["overviews-are-rendered"]


def test_rules_say_where_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["lint", "--rules", "--json"]) == 0
    rules = {rule["id"]: rule for rule in json.loads(capsys.readouterr().out)}
    assert (rules["files-exist"]["severity"], rules["files-exist"]["elsewhere"]) == ("must", "must")
    assert (rules["is-rendered"]["severity"], rules["is-rendered"]["elsewhere"]) == ("must", None)
    assert rules["lists-are-lists"]["severity"] is None
