"""Where the runner keeps things on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs


@dataclass(frozen=True)
class Places:
    """The folders of one cache.

    Attributes:
        root: the cache; per user by default, of a configuration's own where it names `cache_dir`.
        models: downloaded models; always per user, since they serve every configuration.
    """

    root: Path
    models: Path

    @property
    def store(self) -> Path:
        """Returns the folder of finished steps."""
        return self.root / "store"

    @property
    def scratch(self) -> Path:
        """Returns the folder of unfinished work; on the same disk as the store, so that finished work is renamed."""
        return self.root / "scratch"

    @property
    def kept(self) -> Path:
        """Returns the folder of what interrupted steps go on from, by fingerprint."""
        return self.root / "kept"

    @property
    def logs(self) -> Path:
        """Returns the folder of run logs."""
        return self.root / "logs"

    @property
    def digests(self) -> Path:
        """Returns the file that remembers digests."""
        return self.root / "digests.json"


def user_cache() -> Path:
    """Returns the user's cache: $RECIPE_CACHE, or the platform's cache folder."""
    return Path(os.environ.get("RECIPE_CACHE") or platformdirs.user_cache_path("onnx-recipes")).expanduser()


def places(cache_dir: str | None = None) -> Places:
    """Returns the places for a run; a relative `cache_dir` is taken from the current folder, as Olive does."""
    return Places((Path(cache_dir).expanduser() if cache_dir else user_cache()).absolute(), user_cache().absolute() / "models")
