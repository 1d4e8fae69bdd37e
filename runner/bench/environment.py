"""The machine and the software that measure. Names no host and no user."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

from runner.bench.results import Card, Environment
from runner.targets.devices import nvidia_devices
from runner.targets.target import Target, usable_cores

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "onnxruntime-genai-directml",
    "torch",
    "transformers",
    "onnx",
    "numpy",
    "onnx-recipes",
)

REVISION = "RECIPE_REVISION"
_NO_CODE = (":(exclude,glob)**/*.md", ":(exclude,glob)recipes/**/results/**")  # a benchmark before may have changed them

# Instruction sets that decide how fast quantised and fp32 kernels are: /proc/cpuinfo's word -> ours.
_FLAGS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}


class OtherLoad:
    """Tells which share of the machine's time went to others, from its making on: other processes, or other guests."""

    def __init__(self, *ours: int) -> None:
        """Begins to watch; `ours` are the ids of the processes that do not count, beside this one."""
        self._ours = [psutil.Process(pid) for pid in (os.getpid(), *ours)]
        self._before = self._seconds()

    def share(self) -> float:
        """Returns the share since the beginning, 0 to 1."""
        busy, total = (now - then for now, then in zip(self._seconds(), self._before, strict=True))
        return round(min(1.0, max(0.0, busy / total)), 2) if total > 0 else 0.0

    def _seconds(self) -> tuple[float, float]:
        """Returns (seconds of all cores that others used, seconds of all cores)."""
        times = psutil.cpu_times()._asdict()
        total = sum(value for name, value in times.items() if not name.startswith("guest"))  # those are part of user
        ours = sum(sum(process.cpu_times()[:2]) for process in self._ours)
        return total - times["idle"] - times.get("iowait", 0.0) - ours, total


def describe(busy: float, target: Target | None = None) -> Environment:
    """Returns what this process runs on; `busy` is what `OtherLoad` found, `target` what ran the optimised model."""
    return Environment(
        cpu=cpu_model(),
        cores=usable_cores(),
        flags=cpu_flags(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        revision=revision(Path(__file__).resolve().parents[2]),
        busy=busy,
        card=_card() if target is not None and target.name == "cuda" else None,
    )


def _card() -> Card | None:
    found = nvidia_devices()
    if not found.devices:
        return None
    first = found.devices[0]
    return Card(name=first.name, memory_bytes=first.memory_bytes, driver=found.driver or "", cuda=found.cuda)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_model() -> str:
    """Returns the name of the processor, as the system tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    if found:
        return found[1].strip()
    if sys.platform == "darwin":
        told = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False, timeout=10
        )
        return told.stdout.strip() or platform.machine()
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """Returns the instruction sets that matter here; empty where the system does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    words = set(found[1].split()) if found else set()
    return tuple(name for word, name in _FLAGS.items() if word in words)


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def revision(root: Path) -> str | None:
    """Returns the git revision of a tree, with ``-dirty`` behind it where something besides results and pages has changed.

    A copy of the tree without git is of the revision that $RECIPE_REVISION names, such as `git describe --always --dirty` tells
    where the copy is made; None without it.
    """
    if not (root / ".git").exists():
        return os.environ.get(REVISION, "").strip() or None
    try:
        changes = _git(root, "status", "--porcelain", "--", ".", *_NO_CODE)
        return _git(root, "rev-parse", "--short=12", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    told = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return told.stdout.strip()
