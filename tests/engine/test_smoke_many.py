"""Commands in processes of their own: what they told, and how they end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.engine.smoke_many import Commands, Finished, smoke_many


def test_problems_are_told_a_line_each_with_their_remedy() -> None:
    told = "/x/info.yml:3: bad-value: it is bad\n    mend it\n    and again\nasking the hub\nno-lock: there is none\n"
    assert Finished(2, told, "", 1.0).problems == ("bad-value: it is bad (mend it)", "no-lock: there is none")


@pytest.mark.parametrize(
    ("code", "told", "crashed"),
    [
        (0, "", False),
        (1, "step-failed: no", False),
        (1, "", True),
        (3, "bug: ours", True),
        (-9, "", True),
        (None, "timeout: not done after 1 s", False),
    ],
)
def test_a_crash_is_nobodys_fault_but_ours(code: int | None, told: str, crashed: bool) -> None:
    assert Finished(code, told, "", 1.0).crashed is crashed


def test_a_command_ends_with_its_code_and_its_words(tmp_path: Path) -> None:
    with Commands(threads=1, cache=tmp_path) as commands:
        assert commands.run(["--version"], tmp_path, 60).printed.startswith("recipe")
        done = commands.run(["lsx"], tmp_path, 60)
    assert (done.code, done.problems) == (2, ("unknown-verb: there is no verb 'lsx' (did you mean 'ls'?)",))


def test_a_command_is_stopped_when_its_time_is_over(tmp_path: Path) -> None:
    started = time.monotonic()
    with Commands(threads=1, cache=tmp_path) as commands:
        done = commands.run(["--help"], tmp_path, 0.01)
    assert done.code is None
    assert "timeout: not done" in done.problems[0]
    assert time.monotonic() - started < 30


def test_nothing_starts_after_the_end(tmp_path: Path) -> None:
    with Commands(threads=1) as commands:
        pass
    assert commands.run(["--version"], tmp_path, 60).code is None


def test_a_failed_run_keeps_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text('{"input_model": {"type": "HfModel", "model_path": "a/b"}, "passes": {"x": {"type": "Nothing"}}}')
    (done,) = smoke_many({"recipe/variant": config}, jobs=1)
    assert (done.passed, done.code) == (False, 2)
    assert "unknown-pass" in done.cause
    assert done.log is not None and "unknown-pass" in done.log.read_text(encoding="utf-8")
