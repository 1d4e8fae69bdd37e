"""The files that a data configuration names beside itself, and the digest over what it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.data.containers import SECTIONS
from runner.errors import DataUnavailable
from runner.models.digest import files_below, sha256_of_file
from runner.recipe.config import DataComponent, DataConfig


def data_digest(config: DataConfig, folder: Path) -> str:
    """Returns the sha256 over everything that decides what the data is and that lies on this machine.

    That is the configuration, the user script (all Python files of `script_dir` as well), and every local file or folder
    that a parameter names. Imports no ML library.

    Raises:
        DataUnavailable: the user script does not exist, or a path leads out of the folder.
    """
    whole = hashlib.sha256(config.model_dump_json().encode())
    named: list[Path] = []
    if config.user_script:
        script = folder / config.user_script
        if not script.is_file():
            raise DataUnavailable(f"there is no user script '{config.user_script}'", "paths are relative to the configuration")
        named.append(script)
    if config.script_dir:
        named += sorted((folder / config.script_dir).rglob("*.py"))
    for section in SECTIONS.values():
        component: DataComponent | None = getattr(config, section)
        if component is not None:
            named += [path for text in _texts(component.parameters()) for path in _local_paths(text, folder)]
    for path in named:
        for name, file in files_below(path) if path.is_dir() else [(path.name, path)]:
            whole.update(f"{name}\0{sha256_of_file(file)}\n".encode())
    return whole.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _texts(child)


def _local_paths(text: str, folder: Path) -> list[Path]:
    """Returns the files or folders beside the configuration that a parameter names, by wildcards as well."""
    path = local_path(text, folder)
    if path is not None:
        return [path]
    if not _may_be_path(text) or not any(sign in text for sign in "*?["):
        return []
    asked = Path(text.replace("\\", "/"))
    return [] if asked.is_absolute() or ".." in asked.parts else sorted(folder.glob(asked.as_posix()))


def _may_be_path(text: str) -> bool:
    return bool(text) and len(text) <= 500 and "\n" not in text and "\0" not in text


def local_path(text: str, folder: Path) -> Path | None:
    """Returns the file or folder beside the configuration that a parameter names, or None where it names something else.

    Raises:
        DataUnavailable: it leads out of the folder.
    """
    if not _may_be_path(text):
        return None
    asked = Path(text.replace("\\", "/"))
    path = folder / asked
    if not path.exists():
        return None
    if not asked.is_absolute() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataUnavailable(f"'{text}' leads out of the folder of its configuration", "keep data inside the folder")
    return path
