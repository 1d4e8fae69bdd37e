"""Listings of GPUs as nvidia-smi and Windows write them, and the targets that follow from them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from runner.errors import TargetUnavailable
from runner.models.session import session_options
from runner.targets.devices import Device, read_adapters, read_nvidia, read_processes
from runner.targets.target import (
    CLONE,
    best_target,
    clashing_genai,
    clashing_wheels,
    device_missing,
    mismatched_genai,
    target_named,
    what_is_missing,
    wheels_command,
)


def adapter(name: str, memory: int | None) -> dict[str, object]:
    """Returns an object of `Get-CimInstance Win32_VideoController | Select-Object ... | ConvertTo-Json`."""
    return {"Name": name, "AdapterRAM": memory, "DriverVersion": "32.0.101.6647", "PNPDeviceID": "PCI"}


LAPTOP = json.dumps([
    adapter("Microsoft Basic Render Driver", 0),
    adapter("Intel(R) Arc(TM) Graphics", 2147479552),
    adapter("NVIDIA GeForce RTX 4070", 4293918720),
])  # fmt: skip
FORGE = json.dumps(adapter("Microsoft Hyper-V Video", None))  # one adapter is written without a list


def test_nvidia_smi_lists_an_h100() -> None:
    devices, driver = read_nvidia("NVIDIA H100 80GB HBM3, 81559, 580.159.04, 9.0\n")
    assert devices == (Device("NVIDIA H100 80GB HBM3", 81559 << 20, "9.0"),)
    assert driver == "580.159.04"


@pytest.mark.parametrize("listing", ["", "No devices were found\n", "NVIDIA-SMI has failed because it couldn't communicate\n"])
def test_nvidia_smi_lists_nothing(listing: str) -> None:
    assert read_nvidia(listing) == ((), None)


def test_memory_of_a_process_on_several_gpus_is_one_sum() -> None:
    assert read_processes("4711, 100\n4711, 20\n4712, [N/A]\n") == {4711: 120 << 20}


def test_hardware_comes_before_software_and_a_full_32_bit_number_is_no_size() -> None:
    found = read_adapters(LAPTOP)
    assert [(one.name, one.memory_bytes, one.software) for one in found.devices] == [
        ("Intel(R) Arc(TM) Graphics", 2147479552, False),
        ("NVIDIA GeForce RTX 4070", 0, False),
        ("Microsoft Basic Render Driver", 0, True),
    ]


def test_one_adapter_and_none() -> None:
    assert [one.software for one in read_adapters(FORGE).devices] == [True]
    assert read_adapters("").devices == read_adapters("Access denied").devices == ()


@pytest.mark.parametrize(("listing", "usable"), [(LAPTOP, True), (FORGE, False), ("", True)])
def test_directml_needs_an_adapter_that_is_hardware(monkeypatch: pytest.MonkeyPatch, listing: str, usable: bool) -> None:
    """ONNX Runtime's provider passes over software adapters; where no list can be had, it is the one to say."""
    monkeypatch.setattr("runner.targets.target.sys.platform", "win32")
    monkeypatch.setattr("runner.targets.target.directml_devices", lambda: read_adapters(listing))
    missing = device_missing(target_named("directml"))
    assert (missing is None) == usable
    assert usable or "Microsoft Hyper-V Video is drawn by the processor" in (missing or "")


def test_directml_sessions_run_in_order_and_without_memory_patterns() -> None:
    options = session_options(2, provider="DmlExecutionProvider")
    assert not options.enable_mem_pattern
    assert options.execution_mode.name == "ORT_SEQUENTIAL"
    assert session_options(2).enable_mem_pattern


@pytest.mark.parametrize(("here", "best"), [("cuda cpu directml", "cuda"), ("directml cpu", "directml"), ("cpu", "cpu")])
def test_the_best_target_that_is_here(monkeypatch: pytest.MonkeyPatch, here: str, best: str) -> None:
    def missing(target: object) -> tuple[str, str] | None:
        return None if target.name in here.split() else ("no device", "buy one")  # type: ignore[attr-defined]

    monkeypatch.setattr("runner.targets.target.what_is_missing", missing)
    target, why = best_target()
    assert target.name == best
    assert ("cuda: no device" in why) == (best != "cuda")
    target, why = best_target({"cpu"} if "cpu" in here else set())
    assert (target.name, "no variant for cuda" in why) == ("cpu", True)


def test_a_target_without_its_genai_wheel_is_not_the_best_for_what_genai_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "runner.targets.target.device_missing", lambda target: None if target.name != "directml" else "no Windows"
    )
    monkeypatch.setattr("runner.targets.target.installed_wheels", lambda: {"onnxruntime-gpu": "1", "onnxruntime-genai": "1"})
    assert best_target()[0].name == "cuda"
    target, why = best_target(genai=lambda _: True)
    assert target.name == "cpu"
    assert "cuda: the wheel onnxruntime-genai-cuda is not installed" in why


def test_no_target_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.targets.target.what_is_missing", lambda target: ("no wheel", "pip install it"))
    with pytest.raises(TargetUnavailable, match="cpu: no wheel"):
        best_target()
    target, why = best_target({"cpu", "directml"}, only_plan=True)
    assert (target.name, "directml: no wheel; cpu: no wheel" in why) == ("directml", True)
    with pytest.raises(TargetUnavailable):
        best_target(set(), only_plan=True)


def test_wheels_that_overwrite_one_another_or_do_not_go_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(clashing_wheels({"onnxruntime": "1", "onnxruntime-directml": "1"})) == ["onnxruntime", "onnxruntime-directml"]
    assert mismatched_genai({"onnxruntime-gpu": "1", "onnxruntime-genai": "1"}) == ("onnxruntime-genai", target_named("cuda"))
    both = {"onnxruntime": "1", "onnxruntime-genai": "1", "onnxruntime-genai-cuda": "1"}
    assert mismatched_genai(both) is None
    assert list(clashing_genai(both)) == ["onnxruntime-genai", "onnxruntime-genai-cuda"]
    assert mismatched_genai({"onnxruntime-gpu": "1", "onnxruntime-genai-cuda": "1"}) is None
    monkeypatch.setattr("runner.targets.target.device_missing", lambda target: None)
    monkeypatch.setattr("runner.targets.target.installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-genai": "1"})
    cause, remedy = what_is_missing(target_named("cuda")) or ("", "")
    assert cause == "the wheel onnxruntime-gpu is not installed"
    locked = shlex.quote(str(CLONE / "constraints" / "cuda.txt"))
    wheels = "onnxruntime-gpu onnxruntime-genai-cuda"
    assert remedy == f"pip uninstall -y onnxruntime onnxruntime-genai && pip install -c {locked} {wheels}"
    monkeypatch.setattr("runner.targets.target.CLONE", tmp_path / "nowhere")  # as where it was installed from a wheel
    assert wheels_command(target_named("cuda"), {}).startswith("pip install ")
    assert not wheels_command(target_named("cuda"), {}).startswith("pip install -c")
