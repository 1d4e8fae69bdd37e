"""`recipe doctor`: what this machine can run, and what mends what it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import catalog, catalog_option, complete_ids, json_option
from runner.cli.tables import print_json, print_table
from runner.engine.places import places
from runner.recipe.quantities import short_size
from runner.targets.devices import Device, directml_devices, nvidia_devices
from runner.targets.target import (
    CLONE,
    TARGETS,
    Target,
    clashing_genai,
    clashing_wheels,
    device_missing,
    installed_wheels,
    mismatched_genai,
    overwritten,
    too_old,
    usable_cores,
    what_is_missing,
    wheels_command,
)

if TYPE_CHECKING:
    from runner.cli.readiness import Readiness

# What the runner computes with, beside the runtime wheels of a target.
ENGINE_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "numpy")
# Python packages that bring CUDA and cuDNN, as torch's wheels for Linux want them.
CUDA_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
CUDNN_PACKAGES = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
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
class Graphics:
    """The GPUs of this machine, and what CUDA needs: versions, None for what is not found."""

    gpus: tuple[Device, ...]
    driver: str | None
    cuda_of_driver: str | None
    cuda: str | None
    cudnn: str | None


@dataclass(frozen=True)
class TargetState:
    """Whether a target can be used here, and otherwise why not and what mends it; and what it needs at all.

    Of a usable one the cause says what may still be missing, such as the wheel for language models.
    """

    name: str
    provider: str
    needs: str
    wheels: tuple[str, ...]
    usable: bool
    cause: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Something that stops every run, or makes it doubtful.

    Attributes:
        cause: what is wrong.
        remedy: what mends it.
        by_target: command by target, where it depends on what the environment is for; the remedy is one of them.
    """

    cause: str
    remedy: str
    by_target: Mapping[str, str] = field(default_factory=dict)


@click.command()
@click.argument("word", metavar="[RECIPE]", required=False, shell_complete=complete_ids)
@json_option
@catalog_option
def doctor(word: str | None, as_json: bool) -> None:
    """Tell what this machine can run, and what mends what it cannot.

    With a RECIPE (id, id/variant, folder or config file): what its variants need, which of them can be run here, and what mends
    it for the others.

    Ends with exit 1 where something needs mending for every run, such as wheels that overwrite one another, and where the
    variant that is named, or that `recipe run RECIPE` would take, cannot be run here.
    """
    machine = inspect_machine()
    targets = [state_of(target) for target in TARGETS.values()]
    packages = engine_packages()
    troubles = find_troubles(machine, packages, targets)
    can_run = True
    if word is not None:
        from runner.cli.readiness import readiness_of

        variants = readiness_of(word, catalog())
        can_run = not variants[0].problems
        if as_json:
            told = {"name": variants[0].name, "can_run": can_run and not troubles}
            lists = {"variants": [one.to_json() for one in variants], "troubles": [asdict(trouble) for trouble in troubles]}
            print_json({**told, **lists})
        else:
            _print_variants(variants)
            _print_troubles(troubles)
    elif as_json:
        print_json(
            {
                "machine": asdict(machine),
                "graphics": asdict(inspect_graphics()),
                "packages": packages,
                "runtime_wheels": installed_wheels(),
                "targets": [asdict(state) for state in targets],
                "troubles": [asdict(trouble) for trouble in troubles],
            }
        )
    else:
        _print(machine, inspect_graphics(), packages, targets, troubles)
    if troubles or not can_run:
        raise click.exceptions.Exit(1)


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
    """Returns whether the target can be used here; not where its runtime's files are overwritten by another wheel."""
    installed = installed_wheels()
    missing = what_is_missing(target)
    if missing is None and (old := too_old(target, installed)):
        missing = "; ".join(old), wheels_command(target, installed)
    usable = missing is None
    if missing is None and (of_genai := what_is_missing(target, genai=True)):
        missing = f"language models cannot be run: {of_genai[0]}", of_genai[1]
    elif missing is None and target.name == "cuda" and not (_version_of(CUDA_PACKAGES) and _version_of(CUDNN_PACKAGES)):
        missing = (
            "no Python package here brings CUDA 13 and cuDNN 9, so that those of the system must do",
            "install CUDA 13 and cuDNN 9, or a torch whose wheel brings them (not one with +cpu in its version)",
        )
    return TargetState(target.name, target.provider, target.needs, target.wheels, usable, *(missing or ()))


def inspect_graphics() -> Graphics:
    """Returns the GPUs and their software; asks the system's programs and imports no ML library."""
    nvidia = nvidia_devices()
    found = nvidia if nvidia.devices else directml_devices()
    return Graphics(found.devices, found.driver, nvidia.cuda, _version_of(CUDA_PACKAGES), _version_of(CUDNN_PACKAGES))


def _version_of(names: Sequence[str]) -> str | None:
    """The version of the first of these packages that is installed, with its name."""
    for name in names:
        try:
            return f"{importlib.metadata.version(name)} ({name})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def find_troubles(machine: Machine, packages: dict[str, str | None], targets: list[TargetState]) -> list[Trouble]:
    """Returns what somebody must mend before runs can be relied on."""
    troubles = []
    installed = installed_wheels()
    for clashing in (clashing_wheels(installed), clashing_genai(installed)):
        if clashing:
            troubles.append(_trouble_of_wheels(overwritten(clashing), clashing, installed))
    if mismatch := mismatched_genai(installed):
        genai, target = mismatch
        cause = f"{genai} and {target.wheels[0]} do not go together: they belong to different targets"
        troubles.append(_trouble_of_wheels(cause, (genai, target.wheels[0]), installed))
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
    if not any(state.usable for state in targets) and not clashing_wheels(installed):
        troubles.append(Trouble("no target can be used", wheels_command(TARGETS["cpu"], installed)))
    return troubles


def _trouble_of_wheels(cause: str, wheels: Sequence[str], installed: Mapping[str, str]) -> Trouble:
    """What mends wheels that do not go together, for each target that one belongs to; a GPU that is here comes first."""
    fitting = [target for target in TARGETS.values() if set(target.wheels) & set(wheels)]
    commands = {target.name: wheels_command(target, installed) for target in fitting}
    here = [target.name for target in fitting if device_missing(target) is None]
    return Trouble(cause, commands[here[-1] if here else fitting[0].name], commands)


def _print(
    machine: Machine,
    graphics: Graphics,
    packages: dict[str, str | None],
    targets: list[TargetState],
    troubles: list[Trouble],
) -> None:
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
            *_graphics_rows(graphics),
        ],
    )
    click.echo()
    versions = {**packages, **installed_wheels()}
    print_table(("package", "version"), [(name, version or "not installed") for name, version in versions.items()])
    click.echo()
    print_table(
        ("target", "usable", "what is missing", "what mends it"),
        [(state.name, "yes" if state.usable else "no", state.cause or "", state.remedy or "") for state in targets],
    )
    click.echo()
    print_table(("target", "needs"), [(state.name, f"{state.needs}; {' and '.join(state.wheels)}") for state in targets])
    click.echo()
    _print_troubles(troubles)
    told = [*(state.remedy or "" for state in targets), *(trouble.remedy for trouble in troubles)]
    if (CLONE / "Makefile").is_file() and any("pip install -c" in remedy for remedy in told):
        click.echo("in this clone, an environment of its own for a target (cpu, cuda, directml), with the tested versions:")
        click.echo("    make setup TARGET=cuda VENV=.venv-cuda")
    if not troubles:
        click.echo("nothing needs mending for the targets that are usable")


def _print_troubles(troubles: Sequence[Trouble]) -> None:
    for trouble in troubles:
        click.echo(f"{click.style('trouble', fg='red')}: {trouble.cause}")
        for name, command in trouble.by_target.items():
            click.echo(f"  to keep {name}:\n    {command}")
        if not trouble.by_target:
            click.echo(f"    {trouble.remedy}")


def _print_variants(variants: Sequence[Readiness]) -> None:
    """Prints what each variant needs, and what stands in its way."""
    rows = []
    for one in variants:
        sizes = (one.needs.download, one.needs.memory, one.needs.disk, one.needs.output) if one.needs else (0, 0, 0, 0)
        told = (short_size(size) if size else "" for size in sizes)
        rows.append((one.name, one.target, "no" if one.problems else "yes", *told))
    sizes_told = ("download", "memory", "disk", "model")
    print_table(("variant", "target", "runs here", *sizes_told), rows, right=sizes_told)
    click.echo()
    for problem in dict.fromkeys(problem for one in variants for problem in one.problems):
        names = ", ".join(one.name for one in variants if problem in one.problems)
        click.echo(f"{click.style(names, bold=True)}: {problem.cause}")
        if problem.remedy:
            click.echo(f"    {problem.remedy}")
    for note in dict.fromkeys(note for one in variants for note in one.notes):
        click.echo(f"{click.style('note', fg='yellow')} {note}")


def _graphics_rows(graphics: Graphics) -> Iterator[tuple[str, str]]:
    if not graphics.gpus:
        yield "gpu", "none that NVIDIA's driver or DirectX shows"
    for gpu in graphics.gpus:
        memory = f", {gpu.memory_bytes / 1e9:.0f} GB" if gpu.memory_bytes else ""
        capability = f", compute capability {gpu.capability}" if gpu.capability else ""
        yield "gpu", f"{gpu.name}{memory}{capability}{', drawn by the processor' if gpu.software else ''}"
    if graphics.driver:
        cuda = f", serves CUDA up to {graphics.cuda_of_driver}" if graphics.cuda_of_driver else ""
        yield "driver", f"{graphics.driver}{cuda}"
        yield "cuda", f"CUDA {graphics.cuda or 'not in a Python package'}; cuDNN {graphics.cudnn or 'not in a Python package'}"
