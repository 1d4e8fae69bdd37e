"""Content digests of files, remembered by size, time and inode so that a file is hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CHUNK = 1 << 22
_LONG = 1 << 28  # bytes that are not hashed in a moment
_FILES_AT_ONCE = 4


class DigestMemo:
    """Remembers sha256 digests in one JSON file; safe to share between processes, which at worst hash a file twice.

    Args:
        file: where they are kept.
        before_long: called before files are hashed whose digests are unknown and which are large together.
    """

    def __init__(self, file: Path, before_long: Callable[[], None] = lambda: None) -> None:
        self._file = file
        self._before_long = before_long
        self._known: dict[str, list[object]] | None = None
        self._changed = False

    def __enter__(self) -> DigestMemo:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def of_file(self, path: Path) -> str:
        """Returns the hexadecimal sha256 of a file's bytes.

        Raises:
            OSError: the file cannot be read.
        """
        key, stamp = _stamp(path)
        known = self._load().get(key)
        if known is not None and known[:3] == stamp:
            return str(known[3])
        digest = sha256_of_file(path)
        self._load()[key] = [*stamp, digest]
        self._changed = True
        return digest

    def note(self, path: Path, digest: str) -> None:
        """Remembers a digest that is already known, because the file was just written or linked."""
        key, stamp = _stamp(path)
        self._load()[key] = [*stamp, digest]
        self._changed = True

    def of_files(self, files: Iterable[tuple[str, Path]]) -> str:
        """Returns one digest over (name, content) pairs, in the order of their names; several files are hashed at once."""
        ordered = sorted(files)
        unknown = [path for _, path in ordered if not self._knows(path)]
        if sum(path.stat().st_size for path in unknown) >= _LONG:
            self._before_long()
            with ThreadPoolExecutor(min(_FILES_AT_ONCE, os.cpu_count() or 1)) as pool:
                list(pool.map(self.of_file, unknown))
        whole = hashlib.sha256()
        for name, path in ordered:
            whole.update(f"{name}\0{self.of_file(path)}\n".encode())
        return whole.hexdigest()

    def _knows(self, path: Path) -> bool:
        key, stamp = _stamp(path)
        known = self._load().get(key)
        return known is not None and known[:3] == stamp

    def forget(self) -> None:
        """Drops what is in memory, after saving it, so that what another process learned is read."""
        self.save()
        self._known = None

    def save(self) -> None:
        """Writes what was learned. A memo that cannot be written costs time, never correctness."""
        if not self._changed or self._known is None:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_name(f".{self._file.name}.{uuid.uuid4().hex}")
            fresh.write_text(json.dumps(self._known))
            fresh.replace(self._file)
            self._changed = False

    def _load(self) -> dict[str, list[object]]:
        if self._known is None:
            try:
                self._known = json.loads(self._file.read_text())
            except (OSError, ValueError):
                self._known = {}
        return self._known


def _stamp(path: Path) -> tuple[str, list[object]]:
    """Returns a file's name in the memo, and what changes with its content."""
    status = path.stat()
    return str(path.resolve()), [status.st_size, status.st_mtime_ns, status.st_ino]


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's bytes, read in pieces."""
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            whole.update(piece)
    return whole.hexdigest()


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """Returns (relative name with forward slashes, path) of all files below a folder, hidden ones left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(root) / name
                found.append((path.relative_to(folder).as_posix(), path))
    return found
