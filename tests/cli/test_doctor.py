"""doctor says what this machine can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)
    monkeypatch.chdir(ROOT)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run_command([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_doctor_knows_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    told = _json(capsys, "doctor")
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["memory_gb"] > 0.5
    assert told["packages"]["torch"]
    targets = {state["name"]: state for state in told["targets"]}
    assert targets["cpu"]["usable"]
    assert set(targets) == {"cpu", "cuda", "directml"}
    for state in targets.values():
        assert state["usable"] or (state["cause"] and state["remedy"])


def test_doctor_tells_clashing_wheels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("runner.cli.doctor.installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    assert run_command(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "onnxruntime and onnxruntime-gpu overwrite one another" in told
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told


def test_doctor_does_not_send_people_to_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("doctor" in (state["remedy"] or "") for state in _json(capsys, "doctor")["targets"])
