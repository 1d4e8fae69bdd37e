"""Files that are read for the last time: their disk space is given back as the reading goes on."""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Inode = tuple[int, int]  # device and number of a file, whatever it is called

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2)
_MAPPED = Path("/proc/self/maps")


def held_by_these(*folders: Path) -> frozenset[Inode]:
    """Returns the files below folders that have no name elsewhere."""
    found: Counter[Inode] = Counter()
    names: dict[Inode, int] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            inode = status.st_dev, status.st_ino
            found[inode] += 1
            names[inode] = status.st_nlink
    return frozenset(inode for inode, count in found.items() if names[inode] == count)


def can_spend(folder: Path) -> bool:
    """Says whether the disk of a folder that is there gives back parts of a file."""
    if sys.platform != "linux":
        return False
    probe = folder / f".holes-{os.getpid()}"
    try:
        probe.write_bytes(bytes(1))
        with probe.open("r+b") as file:
            return _punch(file.fileno(), 0, 1)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def spend(tensor: torch.Tensor, files: Collection[Inode]) -> None:
    """Gives the disk space of a tensor's bytes back that lie in a mapped file; they read as zeros from then on.

    Does nothing where the tensor does not lie in one of these files, and where disk or system cannot.

    Args:
        tensor: contiguous.
        files: that nobody else reads.
    """
    if sys.platform != "linux" or not files or not tensor.numel() or not tensor.is_contiguous():
        return
    start = tensor.data_ptr()
    for path, offset, length in _pieces(start, start + tensor.numel() * tensor.element_size()):
        with suppress(OSError), path.open("r+b") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) in files:
                _punch(file.fileno(), offset, length)


def _pieces(start: int, stop: int) -> Iterator[tuple[Path, int, int]]:
    """Yields the pieces of files that are mapped to a range of addresses: path, offset and length.

    https://docs.kernel.org/filesystems/proc.html (/proc/PID/maps)
    """
    for line in _MAPPED.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, _, inode, *path = line.split(maxsplit=5)
        first, last = (int(one, 16) for one in addresses.split("-"))
        low, high = max(first, start), min(last, stop)
        if low < high and inode != "0" and path:
            yield Path(path[0]), int(offset, 16) + low - first, high - low


def _punch(file: int, offset: int, length: int) -> bool:
    return bool(_libc().fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
