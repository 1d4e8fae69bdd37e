"""Workers that are started while the source is still being hashed."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from runner.cli import run_command
from runner.models import digest
from runner.models.digest import DigestMemo, sha256_of_file
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of ModelBuilder on a tiny model, none of whose files is too small to be worth a start ahead."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "_LONG", 1)
    twin = architecture_of("meta-llama/Llama-3.2-1B-Instruct")
    source = make_twin(twin, twin.task, tmp_path / "source")
    config = {
        "input_model": {"type": "HfModel", "model_path": str(source.folder), "task": "text-generation"},
        "passes": {"build": {"type": "ModelBuilder", "precision": "fp32"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ["run", "--config", str(tmp_path / "config.json"), "--output-dir", str(tmp_path / "made")]


def test_one_worker_is_started_and_does_the_job(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from runner.engine import supervise
    from runner.evaluation import subject_process

    started = []
    for module in (subject_process, supervise):  # one started ahead, and one where none was
        start = module.start_python
        monkeypatch.setattr(module, "start_python", lambda name, start=start: started.append(start(name)) or started[-1])
    assert run_command(arguments) == 0
    assert len(started) == 1
    assert (tmp_path / "made" / "genai_config.json").is_file()
    assert run_command(arguments) == 0
    assert len(started) == 1  # all digests are known now
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_ends_where_nothing_comes_of_the_plan(arguments: list[str]) -> None:
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    weights = Path(json.loads(Path(arguments[2]).read_text())["input_model"]["model_path"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run_command([*arguments, "--max-memory", "0.001"]) != 0
    assert {one.pid for one in psutil.Process().children(recursive=True)} <= before


def test_several_files_have_the_digest_that_they_have_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number in range(7):
        files.append((f"{number}", tmp_path / f"{number}"))
        files[-1][1].write_bytes(bytes([number]) * 10_000)
    told: list[str] = []
    one_by_one = DigestMemo(tmp_path / "one.json", lambda: told.append("long")).of_files(files)
    assert not told
    monkeypatch.setattr(digest, "_LONG", 1)
    memo = DigestMemo(tmp_path / "several.json", lambda: told.append("long"))
    assert memo.of_files(files) == one_by_one
    assert told == ["long"]
    assert [memo.of_file(path) for _, path in files] == [sha256_of_file(path) for _, path in files]
    assert memo.of_files(files) == one_by_one
    assert told == ["long"]  # nothing is left to hash
