"""Runs that keep their finished model only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.models.handle import ModelHandle


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_masked_bert: ModelHandle) -> Any:
    """Runs an export and a quantisation; gives the receipt and the names of steps whose files the store has."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    config = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_masked_bert.folder), "task": "fill-mask"},
        "passes": {"convert": {"type": "OnnxConversion"}, "quantize": {"type": "OnnxDynamicQuantization"}},
    }

    def run(*flags: str) -> tuple[dict[str, Any], set[str]]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        output = tmp_path / "made"
        assert run_command(["run", "--config", str(tmp_path / "config.json"), "--output-dir", str(output), *flags]) == 0
        records = [path for path in (tmp_path / "cache" / "store").glob("??/*/record.json") if (path.parent / "files").is_dir()]
        steps = {json.loads(path.read_text())["step"] for path in records}
        receipt: dict[str, Any] = json.loads((output / "receipt.json").read_text())
        return receipt, steps

    return run


def test_steps_before_the_last_one_leave_nothing_but_their_record(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    receipt, steps = made("--no-artifacts")
    assert steps == {"quantize"}
    assert [step["step"] for step in receipt["steps"]] == ["convert", "quantize"]
    assert all(step["seconds"] > 0 and step["bytes"] > 10_000 and step["parity"]["numeric"] for step in receipt["steps"])
    capsys.readouterr()
    made()
    assert "up to date" in capsys.readouterr().out  # the last step's result is enough


def test_a_second_run_tells_what_it_did_itself(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("--no-artifacts")
    capsys.readouterr()
    made("--no-artifacts")
    told = capsys.readouterr()
    rows = {row.split()[0]: row.split()[2:4] for row in told.out.splitlines() if row.startswith(("convert ", "quantize "))}
    assert rows["convert"] == ["not", "needed"]
    assert rows["quantize"][0] == "cached"
    assert "stays in the store" not in told.err
    assert run_command(["run", "--config", str(tmp_path / "config.json"), "--dry-run", "--json"]) == 0
    assert [step["state"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["not needed", "cached"]


def test_what_an_earlier_run_left_stays_and_is_told(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    capsys.readouterr()
    receipt, steps = made("--no-artifacts", "--set", "passes.quantize.reduce_range=true")
    assert "--no-artifacts: what convert left (" in capsys.readouterr().err
    assert "convert" in steps
    assert any("stays in the store" in note for note in receipt["notes"])


def test_what_was_dropped_is_made_again_where_it_is_needed(made: Any) -> None:
    made("--no-artifacts")
    receipt, steps = made("--set", "passes.quantize.reduce_range=true")
    assert steps == {"convert", "quantize"}
    assert all(step["seconds"] > 0 for step in receipt["steps"])


def test_without_it_every_step_is_kept(made: Any) -> None:
    assert made()[1] == {"convert", "quantize"}


def test_a_checkpoint_of_codes_is_given_up_while_the_graph_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: ModelHandle
) -> None:
    """The model is the same, and an interrupted run does not find what it has spoilt."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    config = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_llama.folder), "task": "text-generation"},
        "passes": {
            "layers": {"type": "Rtn", "bits": 4, "group_size": 32},
            "head": {"type": "Rtn", "bits": 8, "group_size": 32, "lm_head": True, "embeds": True},
            "build": {"type": "ModelBuilder", "precision": "int4"},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    digests = []
    for name, flags in (("dropped", ["--no-artifacts"]), ("kept", ["--no-cache"])):
        command = ["run", "--config", str(tmp_path / "config.json"), "--output-dir", str(tmp_path / name), *flags]
        assert run_command(command) == 0
        receipt = json.loads((tmp_path / name / "receipt.json").read_text())
        digests.append({file: known["sha256"] for file, known in receipt["files"].items()})
        if name == "dropped":
            folders = {path.parent.parent for path in (tmp_path / "cache" / "store").glob("??/*/files/*")}
            assert {json.loads((folder / "record.json").read_text())["step"] for folder in folders} == {"build"}
    assert digests[0] == digests[1]
