"""doctor says what this machine can run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run_command
from runner.cli.doctor import state_of
from runner.targets.target import TARGETS, device_missing, too_old

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ("onnxruntime", "onnxruntime_genai")


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


PACKAGES = {wheel: package for target in TARGETS.values() for wheel, package in zip(target.wheels, RUNTIMES, strict=True)}


PYTHON = "PLANTED_PYTHON"  # variable: the interpreter of the environment that has the wheels


def environment_in_front(folder: Path) -> tuple[Path, str]:
    """Makes an environment behind whose packages those of this one are found; returns its packages and interpreter."""
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return site, builder.ensure_directories(folder).env_exe


@pytest.fixture
def front(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Returns a function that installs empty wheels into an environment in front of this one, and returns variables.

    The files of those that are named in `whole` are as they should be; those of the others were overwritten. With `at` they
    lie in that folder of PYTHONPATH, and not in an environment.
    """

    def plant(*wheels: str, whole: Iterable[str] = (), packages: bool = True, at: Path | None = None) -> dict[str, str]:
        site, python = at, sys.executable
        if site is None and wheels:
            site, python = environment_in_front(tmp_path / "environment")
        for name in wheels:
            assert site is not None
            folder = site / f"{name.replace('-', '_')}-1.32.0.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.32.0\n")
            size = 0 if name in whole else 7
            (folder / "RECORD").write_text(f"{PACKAGES[name]}/__init__.py,,{size}\n")
            if packages:
                (site / PACKAGES[name]).mkdir(exist_ok=True)
                (site / PACKAGES[name] / "__init__.py").touch()
        path = os.pathsep.join(map(str, (ROOT, at) if at else (ROOT,)))
        return {**os.environ, "PYTHONPATH": path, "COLUMNS": "1000", PYTHON: python}

    return plant


def recipe(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment[PYTHON], "-m", "runner", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def planted(front: Callable[..., dict[str, str]]) -> Callable[..., tuple[int, Any, str]]:
    """Returns a function that plants wheels and returns doctor's exit code, JSON and text."""

    def doctor(*wheels: str, whole: Iterable[str] = (), packages: bool = True, **more: str) -> tuple[int, Any, str]:
        environment = {**front(*wheels, whole=whole, packages=packages), **more}
        data, text = (recipe(environment, "doctor", *flags) for flags in (["--json"], []))
        assert data.returncode == text.returncode
        return data.returncode, json.loads(data.stdout), text.stdout

    return doctor


def test_wheels_in_a_folder_of_pythonpath_are_not_for_pip_to_uninstall(
    front: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "other wheels"
    environment = front("onnxruntime-genai", "onnxruntime-genai-cuda", at=folder)
    told = json.loads(recipe(environment, "doctor", "--json").stdout)
    (trouble,) = told["troubles"]
    off = f"take '{folder}' off PYTHONPATH, or delete onnxruntime-genai and onnxruntime-genai-cuda from it"
    assert trouble["by_target"]["cpu"] == f"{off}, where pip uninstalls nothing"  # this environment has the wheels for the CPU
    told_off, _, command = trouble["by_target"]["cuda"].partition("; then: ")
    assert told_off == f"{off}, where pip uninstalls nothing"
    assert command.startswith("pip uninstall -y onnxruntime onnxruntime-genai && pip install ")
    assert_pasteable([command])


def assert_pasteable(commands: Iterable[str]) -> None:
    for command in commands:
        for one in command.split(" && "):
            assert shlex.split(one)[:2] in (["pip", "uninstall"], ["pip", "install"])
        assert not set("()") & set(command)


def test_runtimes_and_genai_that_clash_are_both_told(planted: Callable[..., tuple[int, Any, str]]) -> None:
    code, told, text = planted("onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda")
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
    code, told, text = planted("onnxruntime", "onnxruntime-genai", "onnxruntime-genai-cuda")
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


def test_a_wheel_in_a_folder_behind_is_not_imported_and_does_no_harm(planted: Callable[..., tuple[int, Any, str]]) -> None:
    wheels = {"onnxruntime-gpu": "1.32.0", "onnxruntime-genai-cuda": "1.32.0"}
    code, told, _ = planted(*wheels)  # this environment's own lie behind
    assert (code, told["troubles"], told["runtime_wheels"]) == (0, [], wheels)
    cpu, cuda = (next(state for state in told["targets"] if state["name"] == name) for name in ("cpu", "cuda"))
    assert (cpu["usable"], cpu["cause"]) == (True, None)  # the runtime for CUDA brings the provider of the CPU
    assert "is not installed" not in (cuda["cause"] or "")


def test_of_wheels_that_clash_the_one_that_lost_no_files_can_be_used(planted: Callable[..., tuple[int, Any, str]]) -> None:
    code, told, _ = planted("onnxruntime", "onnxruntime-gpu", "onnxruntime-genai-cuda", whole=["onnxruntime-gpu"])
    assert code == 1
    (trouble,) = told["troubles"]
    assert "onnxruntime and onnxruntime-gpu overwrite" in trouble["cause"]
    assert next(state for state in told["targets"] if state["name"] == "cpu")["usable"]


@pytest.mark.parametrize("verb", [["run", "--smoke"], ["run"], ["bench", "--smoke"], ["try"]], ids=" ".join)
def test_a_run_is_refused_where_its_wheel_lost_files(
    front: Callable[..., dict[str, str]], tmp_path: Path, verb: list[str]
) -> None:
    environment = front("onnxruntime", "onnxruntime-gpu")
    (tmp_path / "cache").mkdir()
    environment["RECIPE_CACHE"] = str(tmp_path / "cache")
    done = recipe(environment, verb[0], "all-minilm-l6-v2", *verb[1:])
    assert done.returncode == 1
    assert "target-unavailable: CPUExecutionProvider: onnxruntime and onnxruntime-gpu overwrite" in done.stderr
    locked = Path("constraints", "cpu.txt")
    assert (
        f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install -c {locked} {' '.join(TARGETS['cpu'].wheels)};"
        in done.stderr
    )
    assert not list((tmp_path / "cache").rglob("*.log"))  # no worker was started


def test_language_models_need_a_whole_wheel_of_genai_and_others_do_not(
    front: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    environment = {**front("onnxruntime-genai", "onnxruntime-genai-cuda"), "RECIPE_CACHE": str(tmp_path / "cache")}
    refused = recipe(environment, "run", "smollm2-135m-instruct", "--smoke", "--output-dir", str(tmp_path / "out"))
    assert refused.returncode == 1
    assert "onnxruntime-genai and onnxruntime-genai-cuda overwrite one another" in refused.stderr
    assert recipe(environment, "run", "smollm2-135m-instruct", "--dry-run").returncode == 0
    assert recipe(environment, "doctor", "all-minilm-l6-v2/cpu-fp32", "--json").stdout
    told = json.loads(recipe(environment, "doctor", "all-minilm-l6-v2/cpu-fp32", "--json").stdout)
    assert told["variants"][0]["problems"] == []


def test_a_package_whose_files_are_gone_is_no_runtime(front: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """What uninstalling one of two wheels leaves: the other one's metadata, and a folder without a module."""
    environment = front("onnxruntime-gpu", packages=False)
    (wheel,) = (tmp_path / "environment").rglob("onnxruntime_gpu-*.dist-info")
    (wheel.parent / "onnxruntime" / "capi").mkdir(parents=True)
    python = (
        f"import sys; sys.path.remove({sysconfig.get_path('purelib')!r});"
        "from runner.targets.target import TARGETS, installed_wheels, what_is_missing, wheels_command;"
        "print(*what_is_missing(TARGETS['cpu']), sep='\\n'); print(wheels_command(TARGETS['cuda'], installed_wheels()))"
    )
    done = subprocess.run(
        [environment[PYTHON], "-c", python], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    cause, _, command = done.stdout.splitlines()
    assert cause == "files of onnxruntime-gpu are gone, as when another wheel of the package onnxruntime was uninstalled"
    assert command.startswith("pip uninstall -y onnxruntime-gpu && pip install ")


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
    for module in ("runner.cli.doctor", "runner.targets.target"):
        monkeypatch.setattr(f"{module}.installed_wheels", lambda: {"onnxruntime": "1.32.0"})
    state = state_of(TARGETS["cpu"])
    assert state.usable
    assert state.cause == "language models cannot be run: the wheel onnxruntime-genai is not installed"
    assert state.remedy is not None and state.remedy.endswith("onnxruntime onnxruntime-genai")


def test_doctor_tells_where_no_package_brings_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"onnxruntime-gpu": "1.31.1", "onnxruntime-genai-cuda": "0.18.0"}
    monkeypatch.setattr("runner.cli.doctor.installed_wheels", lambda: wheels)
    monkeypatch.setattr("runner.cli.doctor.what_is_missing", lambda *_, **__: None)
    monkeypatch.setattr("runner.cli.doctor.CUDA_PACKAGES", ())
    state = state_of(TARGETS["cuda"])
    assert state.usable
    assert state.cause is not None and state.cause.startswith("no Python package here brings CUDA 13")


def test_doctor_does_not_send_people_to_doctor(as_json: Callable[..., Any]) -> None:
    assert not any("doctor" in (state["remedy"] or "") for state in as_json("doctor")["targets"])


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_doctor_of_a_recipe_tells_of_each_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))  # steps that are made already need nothing
    assert run_command(["doctor", "all-minilm-l6-v2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    by_name = {one["name"].partition("/")[2]: one for one in told["variants"]}
    default = told["variants"][0]
    assert told["name"] == default["name"]
    assert told["can_run"] == default["can_run"] is True
    assert default["target"] == "cpu"
    assert default["needs"]["memory_bytes"] > 10**8
    directml = by_name["dml-fp16"]
    assert not directml["can_run"]
    (problem,) = directml["problems"]
    assert problem["rule"] == "target-unavailable"
    assert "Windows" in problem["cause"]
    assert "run on a machine with Windows" in problem["remedy"]


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_doctor_of_a_variant_ends_by_that_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "all-minilm-l6-v2/dml-fp16"]) == 1
    shown = capsys.readouterr().out
    assert "DirectML exists on Windows only" in shown
    assert "cpu-" not in shown
    assert run_command(["doctor", "all-minilm-l6-v2/cpu-fp32"]) == 0
    assert run_command(["doctor", "all-minilm-l6"]) == 2
    assert "did you mean 'all-minilm-l6-v2'?" in capsys.readouterr().err


def test_doctor_of_a_config_tells_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "nowhere.onnx"},
        "passes": {"quantize": {"type": "OnnxDynamicQuantization"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run_command(["doctor", str(tmp_path / "config.json"), "--json"]) == 1
    (variant,) = json.loads(capsys.readouterr().out)["variants"]
    assert any("nowhere.onnx" in problem["cause"] for problem in variant["problems"])
