"""The command line as a whole: help, exit codes, what is told on which stream, and how fast it answers."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import runner.cli
from runner.cli import SECTIONS, cli, run_command, wants_json
from runner.errors import GateMissed, Problem

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "smollm2-135m-instruct"


pytestmark = pytest.mark.usefixtures("own_catalogue")


def test_help_lists_every_verb_without_importing_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    told = capsys.readouterr().out
    for verbs in SECTIONS.values():
        for verb, (_, summary) in verbs.items():
            assert verb in told
            assert summary.split()[0] in told


@pytest.mark.parametrize("verb", [verb for verbs in SECTIONS.values() for verb in verbs])
def test_verb_is_there_and_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert run_command([verb, "--help"]) == 0
    assert "Usage: recipe" in capsys.readouterr().out


@pytest.mark.parametrize(("group", "verbs"), [("passes", {"ls", "show"}), ("cache", {"ls", "why", "gc", "verify"})])
def test_groups_have_their_verbs(group: str, verbs: set[str]) -> None:
    command = cli.get_command(click.Context(cli), group)
    assert isinstance(command, click.Group)
    assert verbs <= set(command.commands)


def test_python_m_runner_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", "ls", "--json"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert RECIPE in [recipe["id"] for recipe in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["shw"], 2, "did you mean 'show'?"),
        (["ls", "--tasks", "x"], 2, "--task"),
        (["show", "smollm2-135m-instuct"], 2, "did you mean 'smollm2-135m-instruct'?"),
        (["show", RECIPE, "--variant", "cpu-nt4"], 2, "did you mean 'cpu-int4'?"),
        (["show", RECIPE, "--set", "passes.build.precison=int8"], 2, "did you mean 'precision'?"),
        (["passes", "show", "ModelBuildr"], 2, "did you mean 'ModelBuilder'?"),
        (["--catalog", "nowhere", "ls"], 2, "there is no folder 'nowhere'"),
        (["run", "phi-4.cuda.fp16", "--target", "cpu", "--dry-run"], 2, "cuda-fp16 of phi-4 is made for CUDAExecutionProvider"),
        (["run", "phi-4/cuda-fp16", "--target", "cpu", "--dry-run"], 2, "not for --target cpu"),
        (["run", "phi-4", "--variant", "cuda-fp16", "--target", "cpu", "--dry-run"], 2, "for cpu there is cpu-int4"),
        (["ls", "--target", "cudaa"], 2, "did you mean 'cuda'?"),
        (["ls", "--target", "tpu"], 2, "targets: cpu, cuda, directml\n"),
        (["run", RECIPE, "--target", "tpu"], 2, "targets: cpu, cuda, directml, auto\n"),
        (["run", RECIPE, "--target", "atuo"], 2, "did you mean 'auto'?"),
        (["run", RECIPE, "--set", "passes.build.precision"], 2, "for example --set passes.build.precision=int8"),
        (["search", RECIPE, "--space", "passes.build.block_size"], 2, "for example --space passes.build.block_size=16,32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calls_tell_the_nearest_name(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("asked", [["phi-4.cuda.fp16"], ["phi-4", "--variant", "cuda-fp16"]], ids=" ".join)
def test_target_auto_does_not_leave_a_variant_that_is_named(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the plan first: imported behind the other, it would keep that for later tests
    monkeypatch.setattr("runner.engine.plan.what_is_missing", lambda *_, **__: ("no GPU", "add one"))
    monkeypatch.setattr(
        "runner.targets.target.what_is_missing", lambda target: ("no GPU", "add one") if target.device == "gpu" else None
    )
    assert run_command(["run", *asked, "--target", "auto"]) == 1
    assert "cuda: no GPU; cuda-fp16 is not for directml; cuda-fp16 is not for cpu" in capsys.readouterr().err
    assert run_command(["run", *asked, "--target", "auto", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["target"], plan["recipe"]) == ("cuda", "phi-4/cuda-fp16")
    assert any("none can be used here, planned for cuda" in note for note in plan["notes"])
    assert "CUDAExecutionProvider: no GPU; a run stops there" in plan["notes"]
    assert run_command(["run", *asked, "--target", "cpu", "--dry-run"]) == 2
    assert "variant-not-for-target" in capsys.readouterr().err


@pytest.fixture
def gpu_with_genai_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and its runtime, on which onnxruntime-genai is the wheel for the CPU."""
    monkeypatch.setattr("runner.targets.target.device_missing", lambda target: "none" if target.name == "directml" else None)
    monkeypatch.setattr("runner.targets.target.installed_wheels", lambda: {"onnxruntime-gpu": "1", "onnxruntime-genai": "1"})


@pytest.mark.usefixtures("gpu_with_genai_for_the_cpu")
def test_target_auto_looks_for_genai_where_the_recipe_is_made_by_it(as_json: Callable[..., Any]) -> None:
    plan = as_json("run", "smollm2-135m-instruct", "--target", "auto", "--smoke", "--dry-run")
    assert plan["target"] == "cpu"
    assert any("cuda: the wheel onnxruntime-genai-cuda is not installed" in note for note in plan["notes"])
    assert as_json("run", "all-minilm-l6-v2", "--target", "auto", "--smoke", "--dry-run")["target"] == "cuda"


@pytest.mark.usefixtures("gpu_with_genai_for_the_cpu")
def test_a_smoke_run_that_would_be_checked_on_the_gpu_needs_genai_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: Callable[..., Any]
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    asked = ["run", "smollm2-135m-instruct", "--target", "cuda", "--smoke", "--output-dir", str(tmp_path / "out")]
    assert run_command(asked) == 1
    told = capsys.readouterr().err
    assert "CUDAExecutionProvider: the wheel onnxruntime-genai-cuda is not installed" in told
    assert "pip install" in told
    assert not list((tmp_path / "cache").rglob("record.json"))
    assert any("is not installed; a run stops there" in note for note in as_json(*asked, "--dry-run")["notes"])


def test_error_classes_decide_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missed(*_: object, **__: object) -> None:
        raise GateMissed(Problem("gate-missed", "perplexity is 1.2x", remedy="look at the results"))

    monkeypatch.setattr(cli, "main", missed)
    assert run_command(["ls"]) == 4
    assert capsys.readouterr().err == "gate-missed: perplexity is 1.2x\n    look at the results\n"


@pytest.mark.parametrize(
    ("arguments", "code", "rule", "remedy"),
    [
        (["show", "smollm2-135m-instuct", "--json"], 2, "unknown-recipe", "did you mean 'smollm2-135m-instruct'?"),
        (["show", RECIPE, "--json", "--set", "passes.build.precison=int8"], 2, "unknown-option", "did you mean 'precision'?"),
        (["passes", "show", "ModelBuildr", "--json"], 2, "unknown-pass", "did you mean 'ModelBuilder'?"),
        (["run", RECIPE, "--json", "--threads", "none"], 2, "bad-usage", "recipe run --help"),
        (["ls", "--json", "--no-such-option"], 2, "bad-usage", "recipe ls --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_with_json_errors_are_json(
    arguments: list[str], code: int, rule: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err.splitlines()[-1])["error"]
    assert error["exit_code"] == code
    (problem,) = error["problems"]
    assert problem["rule"] == rule
    assert remedy in problem["remedy"]
    assert f"{rule}: {problem['cause']}" in error["message"]
    assert set(problem) == {"rule", "cause", "remedy", "file", "line"}


def test_json_errors_name_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"input_model": {"type": "HfModel", "model_path": "x"},\n "passes": {"a": {"type": "ModelBuildr"}}}')
    assert run_command(["run", "--config", str(config), "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().err)["error"]["problems"]
    assert (problem["file"], problem["line"]) == (str(config), 2)


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("run x --json", True),
        ("cache ls --json", True),
        ("--catalog x ls --json", True),
        ("try model -- --json", False),
        ("check --json report.json", False),
        ("run x", False),
        ("no-such-verb --json", True),
    ],
)
def test_who_asks_for_json(typed: str, asked: bool) -> None:
    """`check` writes its report to a file, and tells people how it goes."""
    assert wants_json(typed.split()) == asked


def test_bugs_and_interrupts_are_json_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    for raised, code, rule in ((ZeroDivisionError("no"), 3, "bug"), (KeyboardInterrupt(), 130, "interrupted")):

        def broken(*_: object, raised: BaseException = raised, **__: object) -> None:
            raise raised

        monkeypatch.setattr(cli, "main", broken)
        assert run_command(["ls", "--json"]) == code
        error = json.loads(capsys.readouterr().err)["error"]
        assert (error["exit_code"], error["problems"][0]["rule"]) == (code, rule)


def test_bug_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(cli, "main", broken)
    assert run_command(["ls"]) == 3
    told = capsys.readouterr().err
    assert "this is a bug of ours: ZeroDivisionError: division by zero" in told
    assert "Traceback" not in told
    (log,) = (tmp_path / "logs").glob("bug-*.log")
    assert str(log) in told
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert run_command(["ls"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m runner passes show ModelBuilder --json | head -c 1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert signal.SIGPIPE


@pytest.mark.skipif(os.name == "nt", reason="no processor times of children there")
@pytest.mark.parametrize("arguments", [["ls"], ["--help"]], ids=" ".join)
def test_answers_at_once(arguments: list[str]) -> None:
    """The bar is 0.30 s on a quiet machine. Tests share theirs, so processor time is held against it, with room for that."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "runner", *arguments], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.45


def test_every_verb_in_the_table_leads_to_a_command() -> None:
    for verbs in SECTIONS.values():
        for place, _ in verbs.values():
            module, _, attribute = place.partition(":")
            assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    assert runner.cli.cli.name == "cli"
