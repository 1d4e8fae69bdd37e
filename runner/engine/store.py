"""The content-addressed store of finished steps.

An entry is a folder named by the step's fingerprint: `record.json` and `files/`. It appears by one rename, so it is whole
or absent; it is verified when it is read; a failed step leaves nothing in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runner.engine.places import Places
from runner.engine.readers import Reader
from runner.errors import StoreError
from runner.models.digest import DigestMemo, files_below
from runner.models.handle import ModelHandle
from runner.models.spent_files import Inode, held_by_these

RECORD = "record.json"
SMALL_FILE = 1 << 20  # bytes; files up to here are copied out, so that editing an output leaves the store whole


_EMPTIED = "emptied"  # bytes of the files that an entry had


@dataclass(frozen=True)
class Entry:
    """A finished step (or evaluation).

    Attributes:
        fingerprint: its key.
        folder: its folder in the store.
        record: what is known of it: pass, options, inputs of the fingerprint, handle, files with digests, seconds,
            parity, metrics.
    """

    fingerprint: str
    folder: Path
    record: dict[str, Any]

    @property
    def files(self) -> Path:
        """Returns the folder of the step's result."""
        return self.folder / "files"

    @property
    def model(self) -> ModelHandle:
        """Returns the handle of the step's result."""
        return ModelHandle.from_json(self.record["handle"], self.files)

    @property
    def size(self) -> int:
        """Returns the bytes that the entry's files take, or took before it was emptied."""
        return int(self.record.get(_EMPTIED, 0)) or sum(entry["size"] for entry in self.record["files"].values())


class Store:
    """Entries by fingerprint. Several processes may use one store at once.

    Args:
        places: where it lies.
        memo: remembers the digests of its files, and of others.
    """

    def __init__(self, places: Places, memo: DigestMemo) -> None:
        self._places = places
        self.memo = memo

    def get(self, fingerprint: str) -> Entry | None:
        """Returns a verified entry, or None when there is none. A damaged entry is thrown away and counts as none."""
        folder = self._folder(fingerprint)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.remove(fingerprint)
            return None
        entry = Entry(fingerprint, folder, record)
        if record.get(_EMPTIED):
            return None
        if self.damage(entry):
            self.remove(fingerprint)
            return None
        return entry

    def told(self, fingerprint: str) -> Entry | None:
        """Returns what `get` does, or an entry that was emptied: its record without its files."""
        path = self._folder(fingerprint) / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return Entry(fingerprint, path.parent, record) if record.get(_EMPTIED) else self.get(fingerprint)

    def disown(self, entry: Entry) -> None:
        """Counts an entry's files as gone, which are still there; what was told of the step stays for receipts."""
        path = entry.folder / RECORD
        half = path.with_name(f".{RECORD}.{os.getpid()}")
        half.write_text(json.dumps({**entry.record, _EMPTIED: entry.size, "files": {}}), encoding="utf-8")
        flush(half)
        half.replace(path)
        flush(path.parent)

    def empty(self, entry: Entry) -> None:
        """Deletes the files of an entry; what was told of the step stays for receipts."""
        self.disown(entry)
        shutil.rmtree(entry.files, ignore_errors=True)

    def take_over(self, entry: Entry, reader: Reader, folder: Path) -> frozenset[Inode]:
        """Gives an entry's files up to its last reader: they count as gone, and are deleted by `empty` later.

        Args:
            entry: the entry.
            reader: reads it.
            folder: the reader's own, where files of the entry may have further names.

        Returns:
            The files, and those in the folder, that nobody else has; none where somebody else reads or makes the entry.
        """
        try:
            with FileLock(self._lock_file(entry.fingerprint), timeout=0):
                files = held_by_these(entry.files, folder)
                if not files or not reader.is_alone():
                    return frozenset()
                self.disown(entry)
                return files
        except Timeout:
            return frozenset()

    def reading(self, fingerprint: str) -> Reader:
        """Returns a reader of an entry; while it is open nobody spoils the entry's files."""
        file = self._lock_file(fingerprint).with_suffix(".readers")
        file.parent.mkdir(parents=True, exist_ok=True)
        return Reader(file)

    def damage(self, entry: Entry, thorough: bool = False) -> list[str]:
        """Returns what is wrong with an entry's files: missing, of another size, or of another content.

        Args:
            entry: the entry.
            thorough: hash every byte again, instead of trusting size, time and inode of files hashed before.
        """
        wrong = []
        memo = DigestMemo(Path(os.devnull)) if thorough else self.memo
        for name, expected in entry.record["files"].items():
            path = entry.files / name
            try:
                if path.stat().st_size != expected["size"]:
                    wrong.append(f"{name}: {path.stat().st_size} bytes instead of {expected['size']}")
                elif memo.of_file(path) != expected["sha256"]:
                    wrong.append(f"{name}: its content has changed")
            except OSError as error:
                wrong.append(f"{name}: {error.strerror}")
        return wrong

    @contextlib.contextmanager
    def lock(self, fingerprint: str) -> Iterator[None]:
        """Holds the right to make the entry; a second process waits here and then finds it made."""
        file = self._lock_file(fingerprint)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file):
            yield

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Gives an empty folder on the store's disk, removed afterwards whatever happens."""
        folder = self._places.scratch / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, fingerprint: str, content: Path, record: dict[str, Any]) -> Entry:
        """Moves a finished folder into the store and returns its entry.

        Files are flushed to disk before the entry appears under its name.
        """
        files = files_below(content)
        _share(content, [path for _, path in files])
        digests: dict[str, dict[str, Any]] = {
            name: {"size": path.stat().st_size, "sha256": self.memo.of_file(path)} for name, path in files
        }
        record = {**record, "fingerprint": fingerprint, "created": time.time(), "files": digests}
        staged = self._places.scratch / f"{os.getpid()}-put-{uuid.uuid4().hex[:12]}"
        staged.mkdir(parents=True)
        try:
            content.rename(staged / "files")
            (staged / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
            for path in (staged / RECORD, *(path for _, path in files_below(staged / "files"))):
                flush(path)
            folder = self._folder(fingerprint)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.remove(fingerprint)
            staged.rename(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        entry = Entry(fingerprint, folder, record)
        for name, known in digests.items():
            self.memo.note(entry.files / name, known["sha256"])
        self.memo.save()
        return entry

    def remove(self, fingerprint: str) -> None:
        """Takes an entry out. It vanishes by one rename before its files are deleted."""
        folder = self._folder(fingerprint)
        doomed = self._places.scratch / f"{os.getpid()}-gone-{uuid.uuid4().hex[:12]}"
        doomed.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def entries(self) -> Iterator[Entry]:
        """Yields every readable entry, unverified, the oldest first."""
        found = []
        for path in self._places.store.glob(f"??/*/{RECORD}"):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found.append(Entry(path.parent.name, path.parent, record))
        yield from sorted(found, key=lambda entry: entry.record["created"])

    def leftovers(self) -> list[Path]:
        """Returns scratch folders of processes that are gone."""
        if not self._places.scratch.is_dir():
            return []
        return [path for path in self._places.scratch.iterdir() if not _alive(path.name.split("-")[0])]

    def unfinished(self) -> list[Path]:
        """Returns the folders that interrupted steps would go on from."""
        return sorted(self._places.kept.iterdir()) if self._places.kept.is_dir() else []

    def _lock_file(self, fingerprint: str) -> Path:
        return self._places.store / "locks" / f"{fingerprint}.lock"

    def _folder(self, fingerprint: str) -> Path:
        return self._places.store / fingerprint[:2] / fingerprint


def disk_use(entries: Iterable[Entry]) -> int:
    """Returns the bytes that entries take on the disk: a file that several of them share counts once."""
    found = {}
    for entry in entries:
        for name, known in entry.record["files"].items():
            with contextlib.suppress(OSError):
                status = (entry.files / name).stat()
                found[status.st_dev, status.st_ino or str(entry.files / name)] = known["size"]
    return sum(found.values())


def _alive(pid: str) -> bool:
    import psutil

    return pid.isdigit() and bool(psutil.pid_exists(int(pid)))


def _share(folder: Path, files: Sequence[Path]) -> None:
    """Lets everybody read the files who may read other new files; libraries write weights into temporary files of their own."""
    fresh = folder / f".{uuid.uuid4().hex}"
    fresh.touch()
    mode = stat.S_IMODE(fresh.stat().st_mode)
    fresh.unlink()
    for path in files:
        own = stat.S_IMODE(path.stat().st_mode)
        if own | mode != own:
            path.chmod(own | mode)


def flush(path: Path) -> None:
    """Has a file's content, or a folder's names, written to the disk where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`: a copy when small, else a hard link, or a copy on another disk.

    A half-made copy never stands under the target's name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        if source.stat().st_size > SMALL_FILE:
            try:
                fresh.hardlink_to(source)
            except OSError:
                shutil.copy2(source, fresh)
        else:
            shutil.copy2(source, fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


KEEPS_STORE = "free some space (recipe cache gc helps), or name another disk by RECIPE_CACHE or cache_dir; finished steps stay"


def explain_write_failure(error: OSError, folder: Path, full: str = KEEPS_STORE) -> StoreError:
    """Returns the error that tells a person why writing below `folder` failed.

    Args:
        error: what the system said.
        folder: where was written.
        full: what to do where the disk is full.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder, full)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        place = error.filename or folder
        return StoreError("not-writable", f"{place} cannot be written: {error.strerror}", "choose another folder")
    return StoreError("write-failed", f"{error.filename or folder}: {error.strerror or error}", "choose another folder or disk")


def disk_full(folder: Path, remedy: str = KEEPS_STORE) -> StoreError:
    """Returns the error for a disk without space; tells how much is left on it."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return StoreError("disk-full", f"no space is left on the disk of {folder} ({free / 1e6:.1f} MB free)", remedy)
