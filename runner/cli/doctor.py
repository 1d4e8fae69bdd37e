"""`recipe doctor`: what this machine can run, and what mends what it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from runner.cli.options import json_option
from runner.cli.tables import print_json, print_table
from runner.engine.places import places
from runner.targets.target import TARGETS, Target, clashing_wheels, installed_wheels, usable_cores, what_is_missing

# What the runner computes with, beside the runtime wheels of a target.
ENGINE_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "numpy")
LEAST_PYTHON = (3, 11)
LEAST_FREE_GB = 5.0
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Machine:
    """What this machine has. Memory and disk in gigabytes of 10^9 bytes."""

    system: str
    python: str
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory_gb: float
    memory_free_gb: float
    cache: str
    disk_free_gb: float


@dataclass(frozen=True)
class TargetState:
    """Whether a target can be used here, and otherwise why not and what mends it."""

    name: str
    provider: str
    usable: bool
    cause: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Something that stops every run, or makes it doubtful."""

    cause: str
    remedy: str


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what this machine can run, and what mends what it cannot."""
    machine = inspect_machine()
    targets = [state_of(target) for target in TARGETS.values()]
    packages = engine_packages()
    troubles = find_troubles(machine, packages, targets)
    if as_json:
        print_json(
            {
                "machine": asdict(machine),
                "packages": packages,
                "runtime_wheels": installed_wheels(),
                "targets": [asdict(state) for state in targets],
                "troubles": [asdict(trouble) for trouble in troubles],
            }
        )
        return
    _print(machine, packages, targets, troubles)


def inspect_machine() -> Machine:
    """Returns what this machine has; imports no ML library."""
    import psutil

    memory = psutil.virtual_memory()
    cache = places().root
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_version()} ({sys.executable})",
        cpu=_cpu_name(),
        cores=usable_cores(),
        instructions=_instructions(),
        memory_gb=round(memory.total / 1e9, 1),
        memory_free_gb=round(memory.available / 1e9, 1),
        cache=str(cache),
        disk_free_gb=round(shutil.disk_usage(_existing(cache)).free / 1e9, 1),
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _cpuinfo(key: str) -> str | None:
    """The first value of a key in /proc/cpuinfo; None where there is no such file or key."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == key:
            return value.strip()
    return None


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    """The instruction sets that decide how fast quantised models are; empty where the system does not tell."""
    flags = (_cpuinfo("flags") or _cpuinfo("features") or "").split()
    return tuple(flag for flag in CPU_FLAGS if flag in flags)


def engine_packages() -> dict[str, str | None]:
    """Returns the version of every package that makes models; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in ENGINE_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def state_of(target: Target) -> TargetState:
    """Returns whether the target can be used here."""
    missing = what_is_missing(target)
    return TargetState(target.name, target.provider, missing is None, *(missing or ()))


def find_troubles(machine: Machine, packages: dict[str, str | None], targets: list[TargetState]) -> list[Trouble]:
    """Returns what somebody must mend before runs can be relied on."""
    troubles = []
    clashing = clashing_wheels(installed_wheels())
    if clashing:
        keep = clashing[0]
        troubles.append(
            Trouble(
                f"{' and '.join(clashing)} overwrite one another's files in this environment",
                f"pip uninstall -y {' '.join(clashing)} && pip install {keep}   (or another one of them)",
            )
        )
    missing = [name for name, version in packages.items() if version is None]
    if missing:
        troubles.append(
            Trouble(f"not installed: {', '.join(missing)}", "pip install 'onnx-recipes[cpu]', or 'make setup' in a clone")
        )
    if sys.version_info < LEAST_PYTHON:
        troubles.append(Trouble(f"Python {platform.python_version()} is too old", "use Python 3.11 or newer"))
    if machine.disk_free_gb < LEAST_FREE_GB:
        troubles.append(
            Trouble(
                f"{machine.disk_free_gb} GB are free where the cache lies ({machine.cache})",
                "run 'recipe cache gc', or set RECIPE_CACHE to a folder on a larger disk",
            )
        )
    if not os.access(_existing(Path(machine.cache)), os.W_OK):
        troubles.append(Trouble(f"the cache {machine.cache} cannot be written", "set RECIPE_CACHE to a folder of yours"))
    if not any(state.usable for state in targets):
        troubles.append(Trouble("no target can be used", "pip install onnxruntime onnxruntime-genai"))
    return troubles


def _print(machine: Machine, packages: dict[str, str | None], targets: list[TargetState], troubles: list[Trouble]) -> None:
    print_table(
        ("machine", ""),
        [
            ("system", machine.system),
            ("python", machine.python),
            (
                "cpu",
                f"{machine.cpu}, {machine.cores} usable cores, {' '.join(machine.instructions) or 'instruction sets unknown'}",
            ),
            ("memory", f"{machine.memory_gb} GB, {machine.memory_free_gb} GB free"),
            ("cache", f"{machine.cache}, {machine.disk_free_gb} GB free"),
        ],
    )
    click.echo()
    versions = {**packages, **installed_wheels()}
    print_table(("package", "version"), [(name, version or "not installed") for name, version in versions.items()])
    click.echo()
    print_table(
        ("target", "usable", "why not", "what mends it"),
        [(state.name, "yes" if state.usable else "no", state.cause or "", state.remedy or "") for state in targets],
    )
    click.echo()
    for trouble in troubles:
        click.echo(f"{click.style('trouble', fg='red')}: {trouble.cause}\n    {trouble.remedy}")
    if not troubles:
        click.echo("nothing needs mending for the targets that are usable")
