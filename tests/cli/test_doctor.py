"""doctor says what this machine can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_catalogue")


def test_doctor_knows_the_machine(as_json: Callable[..., Any]) -> None:
    told = as_json("doctor")
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


def test_doctor_does_not_send_people_to_doctor(as_json: Callable[..., Any]) -> None:
    assert not any("doctor" in (state["remedy"] or "") for state in as_json("doctor")["targets"])
