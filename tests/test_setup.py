"""What a newcomer types: the environment's stamp, the lock, and what CI calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from runner.targets.target import TARGETS, Target
from runner.templating.clone import Clone, normal_name

ROOT = Path(__file__).resolve().parents[1]


def _bootstrap(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "bootstrap.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Returns a clone with as much as the bootstrap reads."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "constraints").mkdir()
    for name in ("scripts/bootstrap.py", "pyproject.toml", "constraints/cpu.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _stamp(clone: Path) -> Path:
    """Writes the stamp that a finished installation leaves."""
    script = "import bootstrap; print(bootstrap._state('cpu,dev', bootstrap._lock('cpu,dev')))"
    environment = {**os.environ, "PYTHONPATH": str(clone / "scripts")}
    state = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    stamp = clone / ".venv" / ".installed-from"
    stamp.parent.mkdir()
    stamp.write_text(state.strip(), encoding="utf-8")
    return stamp


def test_second_setup_does_nothing(clone: Path) -> None:
    _stamp(clone)
    done = _bootstrap(clone)
    assert done.returncode == 0, done.stderr
    assert "is up to date" in done.stdout
    assert not (clone / ".venv" / "bin").exists()


def test_a_mistyped_target_is_not_set_up_as_another(clone: Path) -> None:
    done = _bootstrap(clone, "--extras", "cdua,dev")
    assert done.returncode == 1
    assert done.stderr.startswith("there is no extra 'cdua' in pyproject.toml (targets: cpu, cuda, directml;")
    assert not (clone / ".venv").exists()


def test_setup_is_due_again_when_the_lock_changes(clone: Path) -> None:
    stamp = _stamp(clone)
    lock = clone / "constraints" / "cpu.txt"
    lock.write_text(lock.read_text(encoding="utf-8") + "one-more==1.0\n", encoding="utf-8")
    script = "import bootstrap; print(bootstrap._state('cpu,dev', bootstrap._lock('cpu,dev')))"
    environment = {**os.environ, "PYTHONPATH": str(clone / "scripts")}
    state = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    assert state.strip() != stamp.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_lock_fits_what_pyproject_asks_for(target: Target) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in TARGETS}
    asked = [*project["dependencies"], *project["optional-dependencies"][target.name], *chain(*extras.values())]
    pins = Clone(ROOT).pins(target)
    for requirement in map(Requirement, asked):
        platform = {"sys_platform": "win32" if target.name == "directml" else "linux"}
        if requirement.name == project["name"] or (requirement.marker and not requirement.marker.evaluate(platform)):
            continue
        version = pins[normal_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: the lock has {version}"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_lock_has_the_runtime_of_its_target_alone(target: Target) -> None:
    pins = Clone(ROOT).pins(target)
    assert {name for name in pins if name.startswith("onnxruntime")} == set(target.wheels)
    assert all("+" not in version for version in pins.values())


def test_only_the_lock_of_cuda_has_its_wheels() -> None:
    with_cuda = {name for name, target in TARGETS.items() if any(pin.startswith("nvidia-") for pin in Clone(ROOT).pins(target))}
    assert with_cuda == {"cuda"}


def test_locks_agree_on_what_they_share() -> None:
    clone = Clone(ROOT)
    tested = clone.pins(TARGETS["cpu"])
    for target in TARGETS.values():
        assert {name: version for name, version in clone.pins(target).items() if tested.get(name, version) != version} == {}


def test_ci_runs_make_test_only() -> None:
    lines = [
        line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    assert lines[-1] == "exec make test"
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_lists_what_it_does() -> None:
    told = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "clean"):
        assert f"make {target}" in told
