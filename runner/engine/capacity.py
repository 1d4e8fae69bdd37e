"""What this machine has: memory that a process may use, and free disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Memory that a process may use.

    Attributes:
        limit: bytes that there are for it at most.
        limited_by: what sets the limit, for people.
        free: bytes that nobody uses now.
    """

    limit: int
    limited_by: str
    free: int


def memory() -> Memory:
    """Returns the memory of this machine, or of the control group that this process is confined to where that is less."""
    machine = psutil.virtual_memory()
    confined = min(_group_limits(), default=machine.total)
    if confined < machine.total:
        return Memory(confined, "the memory limit of this container (cgroup)", min(machine.available, confined))
    return Memory(machine.total, "this machine's memory", machine.available)


def _group_limits(groups: Path = _CGROUPS, process: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yields the limits of this process's control groups and of those above them.

    Version 2 writes `memory.max` (a number or `max`), version 1 `memory.limit_in_bytes` (a huge number where there is none):
    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        for folder in (Path(path), *Path(path).parents):
            try:
                text = (root / folder.relative_to("/") / name).read_text(encoding="ascii").strip()
            except (OSError, ValueError):  # inside a container the path of the host is not there
                continue
            if text.isdecimal():
                yield int(text)


def free_disk(folder: Path) -> int:
    """Returns the bytes that can still be written below a folder that may have to be made first."""
    return shutil.disk_usage(existing(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Says whether both folders lie, or would lie, on one file system."""
    return existing(one).stat().st_dev == existing(other).stat().st_dev


def existing(folder: Path) -> Path:
    """Returns a folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
