"""doctor says what this machine can run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from runner.cli.doctor import state_of
from runner.targets.target import TARGETS, device_missing, too_old

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


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """Returns a function that plants wheels beside those of this environment and returns doctor's exit code, JSON and text."""

    def doctor(*wheels: str, **environment: str) -> tuple[int, Any, str]:
        for name in wheels:
            folder = tmp_path / "wheels" / f"{name.replace('-', '_')}-1.31.1.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
            (folder / "RECORD").write_text("")
        path = os.pathsep.join((str(ROOT), str(tmp_path / "wheels")))
        given = {**os.environ, "PYTHONPATH": path, "COLUMNS": "1000", **environment}
        data, text = (
            subprocess.run(
                [sys.executable, "-m", "runner", "doctor", *flags],
                cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=60,
            )
            for flags in (["--json"], [])
        )  # fmt: skip
        assert data.returncode == text.returncode
        return data.returncode, json.loads(data.stdout), text.stdout

    return doctor


def assert_pasteable(commands: Iterable[str]) -> None:
    for command in commands:
        for one in command.split(" && "):
            assert shlex.split(one)[:2] in (["pip", "uninstall"], ["pip", "install"])
        assert not set("()") & set(command)


def test_runtimes_and_genai_that_clash_are_both_told(planted: Callable[..., tuple[int, Any, str]]) -> None:
    code, told, text = planted("onnxruntime-gpu", "onnxruntime-genai-cuda")
    assert code == 1
    first, second = told["troubles"]
    assert "onnxruntime and onnxruntime-gpu overwrite one another" in first["cause"]
    assert "onnxruntime-genai and onnxruntime-genai-cuda overwrite one another" in second["cause"]
    for trouble in (first, second):
        assert set(trouble["by_target"]) == {"cpu", "cuda"}
        assert trouble["remedy"] in trouble["by_target"].values()
        assert_pasteable(trouble["by_target"].values())
        for name, command in trouble["by_target"].items():
            assert f"-c {Path('constraints', f'{name}.txt')} {' '.join(TARGETS[name].wheels)}" in command
            assert f"\n    {command}\n" in text  # a line of its own
    usable = {state["name"]: state["usable"] for state in told["targets"]}
    assert not usable["cpu"]
    assert not usable["cuda"]
    assert "make setup TARGET=cuda" in text


def test_genai_wheels_that_clash_beside_one_runtime(planted: Callable[..., tuple[int, Any, str]]) -> None:
    code, told, text = planted("onnxruntime-genai-cuda")
    (trouble,) = told["troubles"]
    assert code == 1
    assert "onnxruntime-genai and onnxruntime-genai-cuda overwrite one another" in trouble["cause"]
    removed = {name: command.partition(" && ")[0] for name, command in trouble["by_target"].items()}
    assert removed == {
        "cpu": "pip uninstall -y onnxruntime-genai onnxruntime-genai-cuda",
        "cuda": "pip uninstall -y onnxruntime onnxruntime-genai onnxruntime-genai-cuda",
    }
    assert "to keep cpu:" in text
    assert next(state for state in told["targets"] if state["name"] == "cpu")["usable"]


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the driver's library is made with a C compiler"
)
@pytest.mark.parametrize(
    ("code", "count", "serves", "cause"),
    [
        (100, 0, 13000, "NVIDIA's driver is here and reports no GPU (cuInit: error 100; CUDA_VISIBLE_DEVICES is '7')"),
        (0, 0, 13000, "NVIDIA's driver is here and reports no GPU (it counts 0 devices; CUDA_VISIBLE_DEVICES is '7')"),
        (0, 2, 13000, "the wheel onnxruntime-gpu is not installed"),
        (0, 2, 12040, "NVIDIA's driver serves CUDA up to 12.4, and the wheels need CUDA 13"),
    ],
)
def test_a_driver_says_whether_there_is_a_gpu(
    planted: Callable[..., tuple[int, Any, str]], tmp_path: Path, code: int, count: int, serves: int, cause: str
) -> None:
    source = tmp_path / "cuda.c"
    source.write_text(
        f"int cuInit(unsigned f) {{ return {code}; }} int cuDeviceGetCount(int *n) {{ *n = {count}; return 0; }}"
        f"int cuDriverGetVersion(int *n) {{ *n = {serves}; return 0; }}"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    exit_code, told, _ = planted(LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="7")
    assert exit_code == 0
    cuda = next(state for state in told["targets"] if state["name"] == "cuda")
    assert cuda["cause"] == cause
    starts = (
        "make 'nvidia-smi' list the GPU" if not count else "pip uninstall" if serves == 13000 else "install NVIDIA's driver"
    )
    assert cuda["remedy"].startswith(starts)


@pytest.mark.skipif(device_missing(TARGETS["cuda"]) is None, reason="there is a GPU")
def test_the_driver_comes_before_the_wheels(as_json: Callable[..., Any]) -> None:
    cuda = next(state for state in as_json("doctor")["targets"] if state["name"] == "cuda")
    driver, _, command = cuda["remedy"].partition(", then: ")
    assert "nvidia-smi" in driver
    assert command.endswith("onnxruntime-gpu onnxruntime-genai-cuda")
    assert_pasteable([command])


def test_wheels_that_are_too_old_or_missing_are_told() -> None:
    cuda = TARGETS["cuda"]
    assert too_old(cuda, {"onnxruntime-gpu": "1.20.0"}) == [
        "onnxruntime-gpu 1.20.0 is installed, and 1.31.1 or newer is needed"
    ]
    assert not too_old(cuda, {"onnxruntime-gpu": "1.31.1", "onnxruntime-genai-cuda": "0.18.0", "onnxruntime": "1.0"})


def test_doctor_tells_what_language_models_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.cli.doctor.installed_wheels", lambda: {"onnxruntime": "1.32.0"})
    state = state_of(TARGETS["cpu"])
    assert state.usable
    assert state.cause == "language models also need onnxruntime-genai, which is not installed"
    assert state.remedy is not None and state.remedy.endswith("onnxruntime onnxruntime-genai")


def test_doctor_tells_where_no_package_brings_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"onnxruntime-gpu": "1.31.1", "onnxruntime-genai-cuda": "0.18.0"}
    monkeypatch.setattr("runner.cli.doctor.installed_wheels", lambda: wheels)
    monkeypatch.setattr("runner.cli.doctor.what_is_missing", lambda _: None)
    monkeypatch.setattr("runner.cli.doctor.CUDA_PACKAGES", ())
    state = state_of(TARGETS["cuda"])
    assert state.usable
    assert state.cause is not None and state.cause.startswith("no Python package here brings CUDA 13")


def test_doctor_does_not_send_people_to_doctor(as_json: Callable[..., Any]) -> None:
    assert not any("doctor" in (state["remedy"] or "") for state in as_json("doctor")["targets"])
