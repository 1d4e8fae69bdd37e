"""Puts a finished model into the output folder: whole, or not at all, and never over other people's files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from runner.engine.store import Entry, explain_write_failure, link_or_copy
from runner.errors import StoreError
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle

RECEIPT = "receipt.json"
_HANDLE = {"kind", "file", "task", "attributes"}  # what a receipt says of the model itself


def check_writable(output: Path) -> None:
    """Makes sure, before any work, that the output folder can be made or written.

    Raises:
        StoreError: it cannot.
    """
    if output.exists() and not output.is_dir():
        raise StoreError("not-writable", f"{output} is a file; a folder was expected", "choose another --output-dir")
    existing = next(parent for parent in (output, *output.parents) if parent.exists())
    probe = existing / f".recipe-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise explain_write_failure(error, output) from None


def is_current(entry: Entry, output: Path, memo: DigestMemo) -> bool:
    """Returns whether the output folder already holds exactly this result."""
    receipt = read_receipt(output)
    if receipt is None or receipt.get("fingerprint") != entry.fingerprint:
        return False
    try:
        return all(memo.of_file(output / name) == known["sha256"] for name, known in entry.record["files"].items())
    except OSError:
        return False


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Returns the receipt in a folder, or None where there is none that can be read."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return receipt if isinstance(receipt, dict) else None


def finished_model(folder: Path) -> tuple[ModelHandle, str] | None:
    """Returns the model in a folder and its execution provider: by its receipt, else its genai_config.json; None without both.

    A file of that name which is no receipt counts as none.

    Raises:
        RunFailed: there is no receipt, and genai_config.json is damaged.
    """
    receipt = read_receipt(folder)
    if receipt is not None and receipt.keys() >= _HANDLE:
        handle = ModelHandle(receipt["kind"], folder, receipt["file"], receipt["task"], receipt["attributes"])
        return handle, receipt.get("provider", "CPUExecutionProvider")
    if (folder / "genai_config.json").is_file():
        from runner.models.generation import genai_config, provider_of

        return ModelHandle("genai", folder, None, "text-generation"), provider_of(genai_config(folder))
    return None


def publish(entry: Entry, output: Path, receipt: dict[str, Any], memo: DigestMemo) -> None:
    """Fills the output folder with the entry's files (hard links where possible) and the receipt.

    A folder that is new, or holds nothing but an earlier result of ours, appears by one rename. A folder with other
    files in it keeps them.

    Raises:
        StoreError: no space, no permission, or a file of somebody else's is in the way.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_file(entry, output)):
            _publish(entry, output, receipt)
        for name, known in entry.record["files"].items():
            memo.note(output / name, known["sha256"])
    except OSError as error:
        raise explain_write_failure(error, output, "free some space there, or choose another --output-dir") from None


def _lock_file(entry: Entry, output: Path) -> Path:
    """Lies in the store, since a lock file beside the output would be litter there."""
    locks = entry.folder.parents[1] / "locks"
    locks.mkdir(exist_ok=True)
    return locks / f"output-{hashlib.sha256(str(output).encode()).hexdigest()[:32]}.lock"


def _publish(entry: Entry, output: Path, receipt: dict[str, Any]) -> None:
    stage = output.parent / f".{output.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    stage.mkdir()
    try:
        for name in entry.record["files"]:
            link_or_copy(entry.files / name, stage / name)
        (stage / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        new = {*entry.record["files"], RECEIPT}
        present = _names(output)
        ours = {*(read_receipt(output) or {}).get("files", {}), RECEIPT, *_REPORTS} if RECEIPT in present else set()
        foreign = present - ours
        if foreign & new:
            names = ", ".join(sorted(foreign & new)[:5])
            raise StoreError(
                "output-occupied", f"{output} holds files that no run of ours made: {names}", "choose another --output-dir"
            )
        if foreign:
            _move_in(stage, output, new, stale=(present & ours) - new)
        else:
            _swap(stage, output)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# Written into an output folder by other verbs; they describe the result that is being replaced.
_REPORTS = ("report.html", "results.json")


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else set()


def _swap(stage: Path, output: Path) -> None:
    old = output.parent / f".{output.name}.old-{uuid.uuid4().hex[:8]}"
    if output.exists():
        output.rename(old)
    try:
        stage.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move_in(stage: Path, output: Path, new: set[str], stale: set[str]) -> None:
    for name in sorted(new, key=lambda name: name == RECEIPT):  # the receipt comes last
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(output / name)
    for name in stale:
        (output / name).unlink(missing_ok=True)
