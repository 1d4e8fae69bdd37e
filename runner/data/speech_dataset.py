"""Clips with what is said in them from a data set that the `datasets` package reads, such as those of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.data.hub import hub_dataset
from runner.data.sound import Clip
from runner.data.transcribed import TEXT_KEYS
from runner.errors import DataUnavailable

MOST = 100
_SPLIT = "test"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[^:/\\]*){0,2}", re.ASCII)


def names_dataset(text: str) -> bool:
    """Returns whether a text has the form of ``ORGANISATION/NAME``, ``…:CONFIGURATION`` or ``…:CONFIGURATION:SPLIT``."""
    return _NAME.fullmatch(text) is not None


def speech_dataset(named: str, into: Path) -> list[Clip]:
    """Returns at most `MOST` clips of a data set, evenly chosen.

    Args:
        named: ``NAME:CONFIGURATION:SPLIT``; without a split it is ``test``, and the configuration may be empty.
        into: folder for the sound files.

    Raises:
        DataUnavailable: the data set cannot be had, or has no column of sounds or of their words.
    """
    name, subset, split = (*named.split(":"), "", "")[:3]
    try:
        rows = hub_dataset(name, subset or None, split or _SPLIT)
    except DataUnavailable as error:
        remedy = "it is fetched once, with network and the package 'datasets'; or give a folder of sound files"
        raise DataUnavailable(error.problems[0].cause, remedy) from error
    sound, words = _columns(named, rows)
    rows = _undecoded(rows, sound)
    chosen = range(0, len(rows), -(-len(rows) // MOST)) if len(rows) else ()
    clips = [_clip(row, sound, words, into / f"clip-{at:04}") for at, row in enumerate(rows.select(chosen))]
    if not clips:
        raise DataUnavailable(f"the data set '{named}' has no rows")
    return clips


def _columns(named: str, rows: Any) -> tuple[str, str]:
    """Returns the names of the columns of sounds and of words."""
    import datasets

    features: Mapping[str, Any] = rows.features
    sound = next((name for name, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    words = next((name for name in TEXT_KEYS if name in features), None)
    if sound is None or words is None:
        lacking = "of sounds" if sound is None else f"of words ({', '.join(TEXT_KEYS)})"
        raise DataUnavailable(f"the data set '{named}' has no column {lacking}; it has {', '.join(features)}")
    return sound, words


def _undecoded(rows: Any, sound: str) -> Any:
    """Returns the rows with each sound as the bytes or the path of its file; to decode it, `datasets` needs torchcodec."""
    import datasets

    return rows.cast_column(sound, datasets.Audio(decode=False))


def _clip(row: Mapping[str, Any], sound: str, words: str, path: Path) -> Clip:
    recorded = row[sound]
    if recorded.get("bytes") is None:
        return Clip(Path(recorded["path"]), str(row[words]).strip())
    path.write_bytes(recorded["bytes"])
    return Clip(path, str(row[words]).strip())
