"""Writes the locks in constraints/: for each target every version that its extras need, on each platform and Python it serves.

The versions of the environment that runs this script hold for all targets, so run it where `make test` has passed. What that
environment lacks (another target's runtime, CUDA's wheels, what only Windows needs) is the newest version that fits; it is
listed at the end, because no test has run with it. uv resolves, in an environment of its own: unlike pip it answers for
platforms other than its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINUX, WINDOWS = "x86_64-manylinux_2_28", "x86_64-pc-windows-msvc"
# Oldest first: what is found for one holds for the next.
PYTHONS = ("3.11", "3.12", "3.13")
NOT_LOCKED = {"onnx-recipes", "pip", "setuptools", "wheel"}
ONLY_CUDA = re.compile(r"cuda-|nvidia-|triton")


@dataclass(frozen=True)
class Lock:
    """One lock.

    Attributes:
        platforms: uv's names of the platforms it serves.
        cuda: whether torch's CUDA wheels belong to it.
        head: what the file says about itself; one line each.
    """

    platforms: tuple[str, ...]
    cuda: bool
    head: tuple[str, ...]


LOCKS: Mapping[str, Lock] = {
    "cpu": Lock(
        platforms=(LINUX, WINDOWS),
        cuda=False,
        head=(
            "Every version that the CPU target was tested with, transitive ones included; `make lock` writes it from .venv.",
            "torch is its CPU build. Where pip's index serves CUDA builds of the same version as well, give pip an index of CPU"
            " builds.",
        ),
    ),
    "cuda": Lock(
        platforms=(LINUX, WINDOWS),
        cuda=True,
        head=(
            "The CUDA target: the versions of cpu.txt with CUDA's runtimes and wheels; `make lock` writes it.",
            "Resolved for Linux and Windows; no test has run with exactly these versions on a GPU.",
            "On Linux the index's torch brings CUDA. On Windows take torch from PyTorch's own index of CUDA builds.",
        ),
    ),
    "directml": Lock(
        platforms=(WINDOWS,),
        cuda=False,
        head=(
            "The DirectML target, for Windows alone: the versions of cpu.txt with DirectML's runtimes; `make lock` writes it.",
            "Resolved for Windows; no test has run with these versions there.",
            "onnxruntime-genai-directml 0.13.2 and newer ask for an onnxruntime-directml that has not been released.",
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the locks that are named; all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(LOCKS)}; default: all")
    names = parser.parse_args(arguments).targets or list(LOCKS)
    unknown = [name for name in names if name not in LOCKS]
    if unknown:
        parser.error(f"there is no target '{unknown[0]}'; there are {', '.join(LOCKS)}")
    tested = installed()
    with tempfile.TemporaryDirectory(prefix="write-lock-") as scratch:
        uv = _uv(Path(scratch))
        for name in names:
            pins = resolve(uv, name, tested, Path(scratch))
            lock = ROOT / "constraints" / f"{name}.txt"
            lock.write_text(lock_text(LOCKS[name].head, pins), encoding="utf-8", newline="\n")
            print(f"{lock.relative_to(ROOT)}: {len(pins)} versions")
            untested = [f"{package}=={version}" for package, version in sorted(pins.items()) if package not in tested]
            print(f"  not in this environment: {', '.join(untested) or 'none'}")


def installed() -> dict[str, str]:
    """Returns name (in PEP 503's normal form) to version of this environment, without local parts such as `+cpu`."""
    return {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version.partition("+")[0]
        for found in importlib.metadata.distributions()
    }


def extras_of(target: str) -> list[str]:
    """Returns the extras of pyproject.toml that a target can have: its own and all that belong to no target."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(name for name in project["optional-dependencies"] if name == target or name not in LOCKS)


def resolve(uv: Path, target: str, tested: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Returns name to version of what a target needs, over all its platforms and Pythons.

    Raises:
        SystemExit: some version does not fit the others.
    """
    wanted = scratch / f"{target}.in"
    wanted.write_text(f"onnx-recipes[{','.join(extras_of(target))}] @ {ROOT.as_uri()}\n", encoding="utf-8")
    held = scratch / f"{target}.held"
    known = {name: version for name, version in tested.items() if name not in NOT_LOCKED}
    found: dict[str, str] = {}
    for platform in LOCKS[target].platforms:
        for python in PYTHONS:
            held.write_text("".join(f"{name}=={version}\n" for name, version in {**known, **found}.items()), encoding="utf-8")
            found |= pins_in(_compile(uv, wanted, held, platform, python), LOCKS[target].cuda)
    return found


def pins_in(text: str, cuda: bool) -> dict[str, str]:
    """Returns name to version of uv's answer, without local parts, this project and, unless asked for, CUDA's wheels."""
    found = re.findall(r"^([a-z0-9][\w.-]*)==([^\s;+]+)", text, re.MULTILINE)
    return {name: version for name, version in found if name not in NOT_LOCKED and (cuda or not ONLY_CUDA.match(name))}


def lock_text(head: Sequence[str], pins: Mapping[str, str]) -> str:
    """Returns the text of a lock."""
    lines = [*(f"# {line}" for line in head), *(f"{name}=={version}" for name, version in sorted(pins.items()))]
    return "\n".join(lines) + "\n"


def _uv(scratch: Path) -> Path:
    """Returns the uv of a new environment."""
    venv = scratch / "uv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    programs = venv / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([str(programs / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return programs / "uv"


def _compile(uv: Path, wanted: Path, held: Path, platform: str, python: str) -> str:
    command = [str(uv), "pip", "compile", "--quiet", "--no-python-downloads", "--no-header", "--no-annotate"]
    command += ["--python-platform", platform, "--python-version", python, "--constraint", str(held), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{wanted.stem}: nothing fits on {platform} with Python {python}\n{done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
