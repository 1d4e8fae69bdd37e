"""The GPUs of this machine, their drivers and what they hold: asked of the system's own programs, no ML library is loaded."""

from __future__ import annotations

import csv
import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_SECONDS = 20
_MEBI = 1 << 20
_DEVICES = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
_PROCESSES = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
# Display adapters by WMI, in which Windows lists what DirectX can drive: one object, or a list of them.
_ADAPTERS = [
    "powershell", "-NoProfile", "-Command",
    "Get-CimInstance Win32_VideoController | Select-Object Name,AdapterRAM,DriverVersion,PNPDeviceID | ConvertTo-Json",
]  # fmt: skip
_SOFTWARE = ("microsoft basic", "microsoft remote", "microsoft hyper-v", "parsec", "virtual display")


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as its driver calls it.
        memory_bytes: its own memory; 0 where nobody says.
        capability: CUDA's compute capability, such as ``9.0``.
        software: the processor draws in its place, as Windows' WARP does.
    """

    name: str
    memory_bytes: int
    capability: str | None = None
    software: bool = False


@dataclass(frozen=True)
class Devices:
    """GPUs of one kind and what drives them.

    Attributes:
        devices: in the driver's order.
        driver: its version.
        cuda: the newest CUDA that the driver serves.
    """

    devices: tuple[Device, ...] = ()
    driver: str | None = None
    cuda: str | None = None


@cache
def nvidia_devices() -> Devices:
    """Returns the NVIDIA GPUs that the driver shows; none where there is no driver, or no nvidia-smi."""
    devices, driver = read_nvidia(_said(_DEVICES))
    return Devices(devices, driver, cuda_of_driver())


def read_nvidia(listing: str) -> tuple[tuple[Device, ...], str | None]:
    """Returns the GPUs, and their driver's version, of nvidia-smi's listing: name, MiB, driver, compute capability a line."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(listing.splitlines()) if len(row) == 4]
    devices = tuple(Device(row[0], int(row[1]) * _MEBI if row[1].isdecimal() else 0, row[3] or None) for row in rows)
    return devices, rows[0][2] if rows else None


def cuda_of_driver() -> str | None:
    """Returns the newest CUDA that NVIDIA's driver serves, such as "13.0"; None without a driver. It starts no GPU."""
    version = ctypes.c_int()
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


# Asked in a process of its own: a process that called cuInit cannot fork workers that use CUDA.
_COUNT = """
import ctypes, sys
library, count = ctypes.CDLL(sys.argv[1]), ctypes.c_int()
code = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
print(code, count.value)
"""


@cache
def without_gpu(library: str) -> str | None:
    """Returns why the driver's library of that name gives no GPU to this process; None where it gives one, or says nothing."""
    code, _, count = _said([sys.executable, "-I", "-S", "-c", _COUNT, library]).strip().partition(" ")
    if not count:
        return None
    if code != "0":
        return f"cuInit: error {code}"
    return None if int(count) else "it counts 0 devices"


def device_memory_of(pids: Sequence[int]) -> dict[int, int]:
    """Returns the bytes that processes hold on NVIDIA GPUs, by process; what the driver does not tell is left out."""
    return {pid: held for pid, held in read_processes(_said(_PROCESSES)).items() if pid in pids}


def read_processes(listing: str) -> dict[int, int]:
    """Returns bytes by process of nvidia-smi's listing: pid and MiB a line; a process may hold memory on several GPUs."""
    found: dict[int, int] = {}
    for row in csv.reader(listing.splitlines()):
        cells = [cell.strip() for cell in row]
        if len(cells) == 2 and all(cell.isdecimal() for cell in cells):
            found[int(cells[0])] = found.get(int(cells[0]), 0) + int(cells[1]) * _MEBI
    return found


@cache
def directml_devices() -> Devices:
    """Returns the display adapters of Windows, on which DirectML runs; none elsewhere."""
    return read_adapters(_said(_ADAPTERS)) if sys.platform == "win32" else Devices()


def read_adapters(listing: str) -> Devices:
    """Returns the adapters of a listing of Win32_VideoController as JSON, hardware before software.

    AdapterRAM is a 32-bit number: of more than 4 GiB it tells what is left over, so it counts as unknown from there on.
    """
    try:
        told = json.loads(listing or "[]")
    except ValueError:
        return Devices()
    rows = [row for row in (told if isinstance(told, list) else [told]) if isinstance(row, dict) and row.get("Name")]
    devices = [
        Device(str(row["Name"]), _adapter_bytes(row.get("AdapterRAM")), software=_is_software(str(row["Name"]))) for row in rows
    ]
    devices.sort(key=lambda one: one.software)
    driver = next((str(row["DriverVersion"]) for row in rows if row.get("DriverVersion")), None)
    return Devices(tuple(devices), driver)


def _adapter_bytes(told: object) -> int:
    return told if isinstance(told, int) and 0 < told < 4095 * _MEBI else 0


def _is_software(name: str) -> bool:
    return name.lower().startswith(_SOFTWARE)


def _said(command: Sequence[str]) -> str:
    """What a program prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
