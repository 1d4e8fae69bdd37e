"""Targets: a device, the execution provider that drives it, and the wheels that bring the provider."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import InvalidRecipe, Place, Problem, TargetUnavailable, nearest
from runner.targets.devices import cuda_of_driver, directml_devices, without_gpu

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from runner.recipe.config import System

_CUDA = 13  # major version that the pinned wheels for CUDA are built for
CLONE = Path(__file__).resolve().parents[2]  # where the package was cloned; its constraints/ is not there otherwise


@dataclass(frozen=True)
class Target:
    """One way to run a model.

    Attributes:
        name: ``cpu``, ``cuda`` or ``directml``.
        device: Olive's word for the device: ``cpu`` or ``gpu``.
        provider: ONNX Runtime's execution provider.
        genai_provider: what onnxruntime-genai and its builder call the provider.
        wheels: the runtime wheel and the genai wheel that bring it; any one of a pair of runtimes excludes the others.
        precisions: weight precisions that recipes may ask for on it.
        provider_options: what its execution provider is always told: (name, value).
        in_order: sessions run one node after the other and without memory patterns, which DirectML's documentation demands.
        needs: what must be on the machine beside the wheels, for people.
    """

    name: str
    device: str
    provider: str
    genai_provider: str
    wheels: tuple[str, str]
    precisions: tuple[str, ...]
    provider_options: tuple[tuple[str, str], ...] = ()
    in_order: bool = False
    needs: str = ""


TARGETS: Mapping[str, Target] = {
    "cpu": Target(
        "cpu", "cpu", "CPUExecutionProvider", "cpu", ("onnxruntime", "onnxruntime-genai"), ("fp32", "int8", "int4"),
        needs="a 64-bit processor",
    ),
    "cuda": Target(
        "cuda", "gpu", "CUDAExecutionProvider", "cuda", ("onnxruntime-gpu", "onnxruntime-genai-cuda"),
        ("fp32", "fp16", "bf16", "int8", "int4"),
        provider_options=(("arena_extend_strategy", "kSameAsRequested"),),  # the other one doubles what it takes
        needs="an NVIDIA GPU, its driver for CUDA 13 (580 or newer), CUDA 13 and cuDNN 9 (torch's wheels bring both on Linux)",
    ),
    "directml": Target(
        "directml", "gpu", "DmlExecutionProvider", "dml", ("onnxruntime-directml", "onnxruntime-genai-directml"),
        ("fp16", "int4"),
        in_order=True,
        needs="Windows 10 or newer, and a GPU with a driver for DirectX 12",
    ),
}  # fmt: skip

_PACKAGES = ("onnxruntime", "onnxruntime_genai")  # what a target's two wheels are imported as

_BY_PROVIDER = {target.provider: target for target in TARGETS.values()}
_ALIASES = {"gpu": "cuda", "dml": "directml"}


_ELSEWHERE = f"this runner serves {', '.join(sorted(_BY_PROVIDER))}; the recipe belongs to another runner"


def target_named(name: str, besides: Sequence[str] = ()) -> Target:
    """Returns the target called `cpu`, `cuda` (or `gpu`), `directml` (or `dml`).

    Args:
        name: what was typed.
        besides: further words that the caller takes, which the remedy names as well.

    Raises:
        InvalidRecipe: there is none of that name.
    """
    lowered = name.lower()
    found = TARGETS.get(_ALIASES.get(lowered, lowered)) or _BY_PROVIDER.get(name)
    if found is None:
        known = (*TARGETS, *besides)
        near = nearest(name, known)
        remedy = (f"did you mean '{near}'? " if near else "") + f"targets: {', '.join(known)}"
        raise InvalidRecipe(Problem("unknown-target", f"there is no target '{name}'", remedy=remedy))
    return found


def target_name(provider: str) -> str:
    """Returns `cpu`, `cuda` or `dml`, as variants are called; the execution provider itself where it is none of ours."""
    found = _BY_PROVIDER.get(provider)
    return found.genai_provider if found else provider


def target_of(system: System | None, place: Place | None = None) -> Target:
    """Returns the target that a system asks for: its first accelerator's first provider; CPU where it says nothing.

    Raises:
        InvalidRecipe: its provider is not among the targets, or its device is another's.
    """
    if system is None or not system.accelerators:
        return TARGETS["cpu"]
    accelerator = system.accelerators[0]
    if not accelerator.execution_providers:
        if accelerator.device == "npu":
            raise InvalidRecipe(Problem("unsupported-provider", "no target runs on an npu", place, _ELSEWHERE))
        return TARGETS["cuda" if accelerator.device == "gpu" else "cpu"]
    provider = accelerator.execution_providers[0]
    if provider not in _BY_PROVIDER:
        raise InvalidRecipe(
            Problem(
                "unsupported-provider",
                f"{provider} is not among the targets",
                place,
                _ELSEWHERE,
            )
        )
    target = _BY_PROVIDER[provider]
    if "device" in accelerator.model_fields_set and accelerator.device != target.device:
        raise InvalidRecipe(
            Problem(
                "wrong-device",
                f"the device '{accelerator.device}' and {provider} do not go together",
                place,
                f"{provider} runs on '{target.device}'",
            )
        )
    return target


def installed_wheels(without: Collection[Path] = ()) -> dict[str, str]:
    """Returns the runtime wheels that imports here come to, name to version.

    Those of a folder that stands behind another one with the same package are left out: nothing of theirs is imported, and
    nothing in front of them is overwritten.

    Args:
        without: folders that are taken off Python's path in thought.
    """
    found = {}
    imported = [imported_from(package, without) for package in _PACKAGES]
    for target in TARGETS.values():
        for wheel, folder in zip(target.wheels, imported, strict=True):
            here = _distribution(wheel, without)
            if here is not None:
                found[wheel] = here.version, folder is None or _folder_of(here) == folder
    kept = set()
    for place in range(len(_PACKAGES)):
        there = [target.wheels[place] for target in TARGETS.values() if target.wheels[place] in found]
        kept.update([name for name in there if found[name][1]] or there)  # a build without metadata hides none of them
    return {name: version for name, (version, _) in found.items() if name in kept}


def _distribution(wheel: str, without: Collection[Path] = ()) -> Distribution | None:
    """The first wheel of that name on Python's path."""
    import importlib.metadata

    return next(iter(importlib.metadata.distributions(name=wheel, path=_path(without))), None)


def _folder_of(distribution: Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


def _path(without: Collection[Path]) -> list[str]:
    return [entry for entry in sys.path if Path(entry or ".").resolve() not in without]


def wheels_in_use(target: Target) -> tuple[str, str]:
    """Returns the runtime wheel and the genai wheel that run a target: its own, or others where the CPU's are absent."""
    if target.name != "cpu":
        return target.wheels
    installed = installed_wheels()
    here = [[one.wheels[place] for one in TARGETS.values() if one.wheels[place] in installed] for place in range(2)]
    runtime, genai = (found[0] if found else own for found, own in zip(here, target.wheels, strict=True))
    return runtime, genai


def imported_from(package: str, without: Collection[Path] = ()) -> Path | None:
    """Returns the folder from which a package would be imported; None where its own files are not there.

    Args:
        package: name of the package.
        without: folders that are taken off Python's path in thought.
    """
    from importlib.machinery import PathFinder
    from importlib.util import find_spec

    spec = PathFinder.find_spec(package, _path(without)) if without else find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parents[1]


def is_whole(wheel: str) -> bool:
    """Says whether all files that a wheel brought still have the sizes that it wrote down: none was overwritten or removed."""
    import importlib.metadata

    try:
        files = importlib.metadata.distribution(wheel).files or ()
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        try:
            if file.size is not None and Path(str(file.locate())).stat().st_size != file.size:
                return False
        except OSError:
            return False
    return bool(files)


def device_missing(target: Target) -> str | None:
    """Returns why the target's device is not usable on this machine, or None. Loads the driver, no ML library."""
    if target.name == "cuda":
        library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            ctypes.CDLL(library)
        except OSError:
            return "no NVIDIA driver (libcuda) on this machine"
        if reason := without_gpu(library):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            hidden = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is '{visible}'"
            return f"NVIDIA's driver is here and reports no GPU ({reason}{hidden})"
        served = cuda_of_driver()
        if served and int(served.partition(".")[0]) < _CUDA:
            return f"NVIDIA's driver serves CUDA up to {served}, and the wheels need CUDA {_CUDA}"
    if target.name == "directml" and sys.platform != "win32":
        return "DirectML exists on Windows only"
    if target.name == "directml" and (listed := directml_devices().devices) and all(one.software for one in listed):
        # ONNX Runtime's provider takes hardware only, as core/providers/dml/dml_provider_factory.cc filters adapters.
        return f"{listed[0].name} is drawn by the processor (WARP), and ONNX Runtime runs DirectML on hardware only"
    return None


def _device_remedy(target: Target, cause: str) -> str:
    """What brings the device, before any wheel counts."""
    if target.name != "cuda":
        return f"run on a machine with {target.needs}"
    if "reports no GPU" in cause:
        return (
            "make 'nvidia-smi' list the GPU: pass it to the container or virtual machine, and hide none by CUDA_VISIBLE_DEVICES"
        )
    if "serves CUDA" in cause:
        return "install NVIDIA's driver 580 or newer"
    return "on a machine with an NVIDIA GPU install NVIDIA's driver (580 or newer) until 'nvidia-smi' lists the GPU"


def require(target: Target, *, genai: bool = False, otherwise: str = "run a variant for the CPU") -> None:
    """Makes sure that the target can be used here: device, driver and wheels. Never falls back to another provider.

    Args:
        target: what is to run.
        genai: onnxruntime-genai is to run on it.
        otherwise: what can be done where it cannot be used; not told of the CPU.

    Raises:
        TargetUnavailable: says what is missing and the command that mends it.
    """
    missing = what_is_missing(target, genai=genai)
    if missing:
        cause, remedy = missing
        other = "" if target.name == "cpu" else f", or {otherwise}"
        raise TargetUnavailable(target.provider, cause, f"{remedy}{other}; 'recipe doctor' shows what is here")


def what_is_missing(target: Target, *, genai: bool = False) -> tuple[str, str] | None:
    """Returns why the target cannot be used here and what mends it, in order; None where it can be used.

    Every runtime brings the provider of the CPU, so any will do for that.

    Args:
        target: what is to run.
        genai: onnxruntime-genai is to run on it.
    """
    installed = installed_wheels()
    command = wheels_command(target, installed)
    missing = device_missing(target)
    wheels = (_wheel_missing(target, place, installed) for place in range(2 if genai else 1))
    wheel_missing = next(filter(None, wheels), None)
    if missing:
        remedy = _device_remedy(target, missing)
        return missing, f"{remedy}, then: {command}" if wheel_missing and target.name == "cuda" else remedy
    return (wheel_missing, command) if wheel_missing else None


def _wheel_missing(target: Target, place: int, installed: Mapping[str, str]) -> str | None:
    """Returns what is wrong with one of the target's two wheels, where something is."""
    there = [one.wheels[place] for one in TARGETS.values() if one.wheels[place] in installed]
    fitting = there if target.name == "cpu" else [name for name in there if name == target.wheels[place]]
    if not fitting:
        return f"the wheel {target.wheels[place]} is not installed"
    if imported_from(_PACKAGES[place]) is None:
        return f"files of {fitting[0]} are gone, as when another wheel of the package {_PACKAGES[place]} was uninstalled"
    if len(there) > 1 and not any(map(is_whole, fitting)):
        return overwritten(there)
    return None


def overwritten(wheels: Sequence[str]) -> str:
    """Returns the sentence that tells of wheels that lie in one folder and bring the same package."""
    return f"{' and '.join(wheels)} overwrite one another's files in this environment; only one can stay"


def wheels_command(target: Target, installed: Mapping[str, str]) -> str:
    """Returns the command that leaves a target's two wheels in this environment and no others, to be pasted into a shell.

    In a clone they come in the tested versions of its constraints file, elsewhere in those that this package asks for. Wheels
    in a folder from which pip uninstalls nothing come first, in words.
    """
    removed = _to_remove(target, installed)
    if not (foreign := _out_of_reach(removed)):
        return _pip_command(target, removed)
    on_path = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    told = " and ".join(
        f"take {shlex.quote(str(folder))} off PYTHONPATH, or delete {' and '.join(names)} from it"
        if folder in on_path
        else f"delete {' and '.join(names)} from {shlex.quote(str(folder))}"
        for folder, names in foreign.items()
    )
    told += ", where pip uninstalls nothing"
    rest = installed_wheels(foreign)
    removed = _to_remove(target, rest, foreign)
    complete = not removed and rest.keys() >= set(target.wheels)
    return told if complete else f"{told}; then: {_pip_command(target, removed)}"


def _to_remove(target: Target, installed: Mapping[str, str], without: Collection[Path] = ()) -> Sequence[str]:
    """Returns the wheels that must go: those of other targets, and of those that clash the target's own too."""
    clashing = {*clashing_wheels(installed), *clashing_genai(installed)}
    for wheel, package in zip(target.wheels, _PACKAGES, strict=True):
        clashing |= {wheel} if imported_from(package, without) is None else set()  # pip takes it for installed
    return [name for name in installed if name not in target.wheels or name in clashing]


def _out_of_reach(wheels: Sequence[str]) -> Mapping[Path, Sequence[str]]:
    """Returns the folders outside this environment, such as those on PYTHONPATH, in which some of the wheels lie."""
    import site
    import sysconfig

    own = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    managed = {Path(folder).resolve() for folder in own}
    found: dict[Path, list[str]] = {}
    for name in wheels:
        here = _distribution(name)
        if here is not None and _folder_of(here) not in managed:
            found.setdefault(_folder_of(here), []).append(name)
    return found


def _pip_command(target: Target, removed: Sequence[str]) -> str:
    remove = f"pip uninstall -y {' '.join(removed)} && " if removed else ""
    locked = CLONE / "constraints" / f"{target.name}.txt"
    if not locked.is_file():
        return f"{remove}pip install {' '.join(map(shlex.quote, _asked_for(target)))}"
    path = locked.relative_to(Path.cwd()) if locked.is_relative_to(Path.cwd()) else locked
    return f"{remove}pip install -c {shlex.quote(str(path))} {' '.join(target.wheels)}"


def too_old(target: Target, installed: Mapping[str, str]) -> Sequence[str]:
    """Returns what is wrong with the versions of a target's installed wheels, one text a wheel; empty where they will do."""
    least = {name: version for one in _asked_for(target) for name, _, version in [one.partition(">=")] if version}
    return [
        f"{name} {installed[name]} is installed, and {version} or newer is needed"
        for name, version in least.items()
        if name in installed and _numbers(installed[name]) < _numbers(version)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", version)[:3])


def _asked_for(target: Target) -> Sequence[str]:
    """The target's wheels with the versions that this package's extra of its name asks for."""
    import importlib.metadata

    try:
        asked = [one.partition(";")[0].strip() for one in importlib.metadata.requires("onnx-recipes") or ()]
    except importlib.metadata.PackageNotFoundError:
        asked = []
    return [next((one for one in asked if re.split(r"[^\w.-]", one)[0] == name), name) for name in target.wheels]


def usable_cores() -> int:
    """Returns the number of cores this process may run on: affinity and cgroup quota respected where the system tells."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def session_threads(asked: int | None = None) -> int:
    """Returns the threads for a session on this machine: as many as asked for, or one a core that may be used."""
    return asked or usable_cores()


def clashing_wheels(installed: Mapping[str, str]) -> Sequence[str]:
    """Returns the runtime wheels that overwrite one another in this environment; empty when there is at most one."""
    return _several(installed, 0)


def clashing_genai(installed: Mapping[str, str]) -> Sequence[str]:
    """Returns the wheels of onnxruntime-genai that overwrite one another; empty when there is at most one."""
    return _several(installed, 1)


def _several(installed: Mapping[str, str], place: int) -> Sequence[str]:
    there = [target.wheels[place] for target in TARGETS.values() if target.wheels[place] in installed]
    return there if len(there) > 1 else ()


def mismatched_genai(installed: Mapping[str, str]) -> tuple[str, Target] | None:
    """Returns the one wheel of onnxruntime-genai that does not go with the one runtime, and that runtime's target.

    None where they go together, or where there are several of either, which is a clash.
    """
    runtimes = [target for target in TARGETS.values() if target.wheels[0] in installed]
    there = [target.wheels[1] for target in TARGETS.values() if target.wheels[1] in installed]
    if len(runtimes) != 1 or len(there) != 1 or there[0] == runtimes[0].wheels[1]:
        return None
    return there[0], runtimes[0]


def best_target(
    names: Collection[str] | None = None,
    named: str = "",
    *,
    genai: Callable[[Target], bool] = lambda _: False,
    only_plan: bool = False,
) -> tuple[Target, str]:
    """Returns the fastest target that can be used here, and why it is that one: CUDA, else DirectML, else the CPU.

    Args:
        names: targets to choose among, such as those that a recipe has variants for; all where None.
        named: the variant that somebody chose; empty where a recipe's are to choose from.
        genai: whether onnxruntime-genai is to run on a target; asked of those only whose device and runtime are here.
        only_plan: nothing is to run: where none of them can be used here, the fastest of them is returned.

    Raises:
        TargetUnavailable: none of them can be used here.
    """
    passed_over = []
    planned: Target | None = None
    for name in ("cuda", "directml", "cpu"):
        if names is not None and name not in names:
            passed_over.append(f"{named} is not for {name}" if named else f"no variant for {name}")
            continue
        missing = what_is_missing(TARGETS[name])
        if missing is None and genai(TARGETS[name]):
            missing = what_is_missing(TARGETS[name], genai=True)
        if missing is None:
            return TARGETS[name], "; ".join((f"{name} can be used here", *passed_over))
        planned = planned or TARGETS[name]
        passed_over.append(f"{name}: {missing[0]}")
    if only_plan and planned:
        return planned, f"none can be used here, planned for {planned.name}; {'; '.join(passed_over)}"
    raise TargetUnavailable("--target auto", "; ".join(passed_over), "'recipe doctor' tells what mends it")
