"""What a search has found so far, on disk: written whole after every point, so that an interrupted search goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runner.errors import StoreError, UsageError
from runner.recipe.choices import Point
from runner.search.aims import Figures, figure_from_json
from runner.search.space import key_of

VERSION = 1
RECORD = "search.json"


@dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
        number: counted from 0.
        point: value by name of the axis.
        seconds: wall time of making and measuring.
        figures: what was measured; empty where it failed.
        reason: why it failed; None where it did not.
        rule: the rule of that failure.
        failed_step: fingerprint of the step that failed, which every point that shares it would meet.
        fingerprint: of the model that was made.
    """

    number: int
    point: Point
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str | None = None
    rule: str | None = None
    failed_step: str | None = None
    fingerprint: str | None = None

    @property
    def done(self) -> bool:
        """Returns whether the model was made and measured."""
        return self.reason is None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Returns the trial that `to_json` gave."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "figures": {name: figure_from_json(one) for name, one in data["figures"].items()}})

    def to_json(self) -> dict[str, Any]:
        """Returns the trial as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Study:
    """The trials of one search in its folder.

    Attributes:
        folder: where everything about the search lies.
        key: what is searched, on which model, and how it is measured; another key is another search.
        trials: in the order in which they were tried.
    """

    folder: Path
    key: str
    trials: tuple[Trial, ...] = ()

    @classmethod
    def open(cls, folder: Path, key: str, fresh: bool) -> Study:
        """Returns the search that lies in a folder, or a new one.

        The record of another search is put aside under its key, and found again when that search is asked for.

        Args:
            folder: the folder.
            key: the search.
            fresh: begin anew.

        Raises:
            StoreError: the record cannot be read or put aside.
        """
        record, own = folder / RECORD, folder / f"search-{key[:8]}.json"
        try:
            held = _read(record)
            if held is not None and held["key"] != key:
                record.replace(folder / f"search-{held['key'][:8]}.json")
                held = None
            if held is None and own.is_file():
                held = _read(own)
                own.replace(record)
        except (OSError, ValueError, LookupError, TypeError) as error:
            remedy = "--fresh begins anew" if not fresh else f"delete {record}"
            if not fresh:
                raise StoreError("bad-search-record", f"{record} cannot be read: {error}", remedy) from None
            held = None
        if held is None or fresh or held["key"] != key:
            return cls(folder, key)
        return cls(folder, key, tuple(Trial.from_json(one) for one in held["trials"]))

    def with_trial(self, trial: Trial) -> Study:
        """Returns the study with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    def tried(self) -> set[str]:
        """Returns the keys of the points that were tried."""
        return {key_of(trial.point) for trial in self.trials}

    def failed_steps(self) -> dict[str, Trial]:
        """Returns the first trial in which a step failed, by that step."""
        return {trial.failed_step: trial for trial in reversed(self.trials) if trial.failed_step}

    def write(self, told: Mapping[str, Any]) -> None:
        """Writes the record, whole or not at all.

        Args:
            told: what stands in it for readers, beside the trials.

        Raises:
            StoreError: it cannot be written.
        """
        data = {"version": VERSION, "key": self.key, **told}
        if "trials" not in data:
            data["trials"] = [trial.to_json() for trial in self.trials]
        half = self.folder / f".{RECORD}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with half.open("w", encoding="utf-8") as file:
                file.write(json.dumps(data, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            half.replace(self.folder / RECORD)
        except OSError as error:
            raise _unwritable(self.folder, error) from None


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError("cannot-write", f"{folder}: {error.strerror or error}", "choose another --output-dir")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data["trials"], list) or data.get("version") != VERSION:
        raise ValueError("it is no record of a search")
    return data


def key_for(parts: Mapping[str, Any]) -> str:
    """Returns the digest of what makes a search this one, as hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other searches out of the folder; ends with the process, however it ends.

    Raises:
        UsageError: another search works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        remedy = "wait, or choose another --output-dir"
        raise UsageError("search-running", f"another search works in {folder}", remedy) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield
    finally:
        lock.release()
