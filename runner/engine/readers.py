"""Who reads the files of an entry: readers share a lock, which a run that spoils the files must have for itself."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


class Reader:
    """One that reads an entry's files until it is closed.

    Args:
        file: the lock; it stays when it is not needed any more.
    """

    def __init__(self, file: Path) -> None:
        self._held: int | None = None
        if sys.platform == "linux":  # elsewhere no file is spoilt
            self._held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            self._share()

    def is_alone(self) -> bool:
        """Says whether nobody else reads the files. Only one may ask at a time, so that both are not told the same."""
        import fcntl

        if self._held is None:
            return False
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._share()  # what was held is lost by asking
            return False
        return True

    def close(self) -> None:
        """Stops reading."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _share(self) -> None:
        import fcntl

        if self._held is not None:
            with suppress(OSError):  # a disk that knows no locks: then nobody is ever alone
                fcntl.flock(self._held, fcntl.LOCK_SH)
