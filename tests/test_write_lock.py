"""The locks' script, without a resolver or a network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from runner.targets.target import TARGETS
from runner.templating.clone import read_pins

ROOT = Path(__file__).resolve().parents[1]
RESOLVED = """\
cuda-toolkit==13.0.3
numpy==2.4.6
nvidia-cublas==13.1.1
onnx-recipes @ file:///somewhere
pandas==3.1.1 ; python_version >= "3.11"
setuptools==84.2.1
torch==2.13.0+cpu
triton==3.7.1
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_lock", ROOT / "scripts" / "write_lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "write_lock", module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def test_cuda_wheels_are_kept_for_cuda_alone(script: ModuleType) -> None:
    everywhere = {"numpy": "2.4.6", "pandas": "3.1.1", "torch": "2.13.0"}
    assert script.pins_in(RESOLVED, cuda=False) == everywhere
    assert script.pins_in(RESOLVED, cuda=True) == {
        **everywhere, "cuda-toolkit": "13.0.3", "nvidia-cublas": "13.1.1", "triton": "3.7.1",
    }  # fmt: skip


def test_there_is_a_lock_for_every_target(script: ModuleType) -> None:
    assert set(script.LOCKS) == set(TARGETS)
    for name in TARGETS:
        extras = script.extras_of(name)
        assert name in extras
        assert not [other for other in extras if other in TARGETS and other != name]


def test_committed_locks_say_what_the_script_would_say_of_them(script: ModuleType) -> None:
    for name, lock in script.LOCKS.items():
        text = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8")
        assert text == script.lock_text(lock.head, read_pins(text))


def test_environment_tells_versions_without_local_parts(script: ModuleType) -> None:
    found = script.installed()
    assert found["click"]
    assert not [name for name, version in found.items() if "+" in version or "_" in name]


def test_unknown_target(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["gpu"])
    assert ended.value.code == 2
    assert "there is no target 'gpu'; there are cpu, cuda, directml" in capsys.readouterr().err
