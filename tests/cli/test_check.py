"""`recipe check`: what it looks at, what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from runner.cli import run_command

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkout(small_clone: Path) -> Path:
    """The small clone as a git checkout in which nothing has changed."""
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], [*who, "commit", "-qm", "start"]):
        subprocess.run(["git", *arguments], cwd=small_clone, check=True)
    return small_clone


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_one_variant_is_linted_and_run_and_leaves_no_model(small_clone: Path, tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "report.json"
    assert run_command(["check", "bert-base-uncased/cpu-int8-dynamic", "--json", str(report)]) == 0
    told = capsys.readouterr().out
    assert "ok      bert-base-uncased/cpu-int8-dynamic" in told
    assert "1 recipe linted: 0 to mend" in told and "1 smoke run: 0 failed" in told
    assert not list(small_clone.rglob("model.onnx"))
    kept = json.loads(report.read_text(encoding="utf-8"))
    assert kept["ok"] and kept["runs"][0]["id"] == "bert-base-uncased/cpu-int8-dynamic"


def test_a_failure_is_told_with_its_cause_and_log(checkout: Path, capsys: Capture) -> None:
    config = checkout / "recipes" / "resnet" / "resnet-50" / "olive_config.json"
    edit(config, '"OnnxPeepholeOptimizer"', '"OnnxPeephole"')
    assert run_command(["check"]) == 2
    told = capsys.readouterr().out
    assert "failed  resnet-50/cpu-fp32" in told
    assert "unknown-pass" in told
    assert "1 smoke run: 1 failed" in told
    assert "is-rendered" in told
    log = Path(told.partition("log: ")[2].splitlines()[0])
    assert "unknown-pass" in log.read_text(encoding="utf-8")
    assert "recipe check resnet-50/cpu-fp32" in told


def test_nothing_changed_is_nothing_to_check(checkout: Path, capsys: Capture) -> None:
    assert run_command(["check"]) == 0
    assert "nothing that recipes depend on has changed" in capsys.readouterr().out
    (checkout / "notes.txt").write_text("mine")
    assert run_command(["check", "--changed", "main"]) == 0


def test_what_would_be_checked_is_listed(checkout: Path, capsys: Capture) -> None:
    edit(checkout / "recipes" / "bert" / "bert-base-uncased" / "info.yml", "title: ", "title: Another ")
    (checkout / "templates" / "pipelines" / "vision-cuda-fp16.json.j2").write_text("{}")
    assert run_command(["check", "--list"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "/" in line]
    assert sum(line.startswith("bert-base-uncased/") for line in listed) == 6
    assert "resnet-50/cuda-fp16" in listed


def test_the_spread_and_shards_of_it_are_listed(small_clone: Path, capsys: Capture) -> None:
    def listed(*arguments: str) -> list[str]:
        assert run_command(["check", "--list", *arguments]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("checking")]

    whole = listed("--spread")
    assert {line.partition("/")[0] for line in whole} >= {"resnet-50", "vit-base-patch16-224"}
    assert sorted(listed("--spread", "--shard", "1/2") + listed("--spread", "--shard", "2/2")) == whole
    assert len(listed("--all")) > len(whole)


def test_an_info_that_cannot_be_read_fails_the_check_of_what_changed(checkout: Path, capsys: Capture) -> None:
    edit(checkout / "recipes" / "resnet" / "resnet-50" / "info.yml", "licence:", "license:")
    assert run_command(["check"]) == 2
    assert "did you mean 'licence'?" in capsys.readouterr().out


def test_without_git_it_asks_for_names(small_clone: Path, capsys: Capture) -> None:
    assert run_command(["check"]) == 2
    told = capsys.readouterr().err
    assert "no-git-checkout" in told and "--all" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--all", "--spread"], "bad-usage"),
        (["resnet-50", "--all"], "bad-usage"),
        (["resnet-51"], "resnet-50"),
        (["resnet-50/cpu-fp23"], "cpu-fp32"),
        (["--all", "--shard", "4/3"], "bad-shard"),
    ],
)
def test_bad_usage_is_told(small_clone: Path, capsys: Capture, arguments: list[str], told: str) -> None:
    assert run_command(["check", *arguments]) == 2
    assert told in capsys.readouterr().err
