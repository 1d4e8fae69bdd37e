"""A recipe folder's own file: what it may be called, and where it is."""

from __future__ import annotations

from pathlib import Path

INFO_NAMES = ("info.yml", "info.yaml")


def info_file(folder: Path) -> Path | None:
    """Returns the folder's info.yml; None for a folder that is no recipe."""
    return next((path for name in INFO_NAMES if (path := folder / name).is_file()), None)
