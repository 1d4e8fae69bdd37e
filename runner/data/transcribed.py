"""Folders of sound files with what is said in them, in the layouts that people keep them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from runner.data.sound import TRANSCRIPTS, Clip, speech
from runner.errors import DataUnavailable

SOUND_FILES = (".wav", ".flac", ".mp3", ".ogg")
TABLES = tuple(f"{stem}.{kind}" for stem in ("metadata", "transcripts") for kind in ("csv", "tsv", "jsonl"))
_FILE_KEYS = ("file_name", "audio_filepath", "path", "audio", "file", "filename", "wav", "id")
TEXT_KEYS = ("text", "transcription", "transcript", "sentence", "raw_transcription", "normalized_text")
_LAYOUTS = (
    f"a .txt beside every sound file; {TRANSCRIPTS}; metadata.csv, .tsv or .jsonl with columns file_name and text; "
    "LibriSpeech's *.trans.txt; Kaldi's wav.scp and text"
)


def transcribed(folder: Path) -> list[Clip]:
    """Returns the clips of a folder, in a fixed order.

    Taken are, in this order: `transcripts.txt`; a table (`metadata` or `transcripts` as .csv, .tsv or .jsonl); Kaldi's
    `wav.scp` and `text`; LibriSpeech's ``*.trans.txt`` in any folder below; and a text file beside every sound file.

    Raises:
        DataUnavailable: there are no transcripts, they are not readable, a file that they name is not there, or says nothing.
    """
    if not folder.is_dir():
        raise DataUnavailable(f"there is no folder '{folder}'", "give a folder of sound files with their transcripts")
    if (folder / TRANSCRIPTS).is_file():
        return speech(folder)
    clips = [_checked(*found) for found in _named(folder)]
    if not clips:
        raise DataUnavailable(f"nothing in {folder} says what the sound files in it say", f"known are: {_LAYOUTS}")
    return clips


def _named(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields (sound file, words, where that was read)."""
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    librispeech = sorted(folder.rglob("*.trans.txt"))
    if table is not None:
        yield from _table(table)
    elif (folder / "wav.scp").is_file() and (folder / "text").is_file():
        yield from _kaldi(folder)
    elif librispeech:
        for listed in librispeech:
            for number, name, words in _lines(listed):
                yield _with_suffix(listed.parent / name), words, f"{listed}:{number}"
    else:
        yield from _beside(folder)


def _beside(folder: Path) -> Iterator[tuple[Path, str, str]]:
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_FILES)
    if not any(path.with_suffix(".txt").is_file() for path in sounds):
        return
    for path in sounds:
        words = path.with_suffix(".txt")
        if not words.is_file():
            raise DataUnavailable(
                f"{path} has no transcript: there is no {words.name} beside it", "write it, or move the file away"
            )
        yield path, _text(words), str(words)


def _kaldi(folder: Path) -> Iterator[tuple[Path, str, str]]:
    listed = folder / "wav.scp"
    files = {}
    for number, name, path in _lines(listed):
        if path.rstrip().endswith("|"):
            raise DataUnavailable(f"{listed}:{number} is a command, not a file", "convert the sound to files first")
        files[name] = folder / path
    for number, name, words in _lines(folder / "text"):
        where = f"{folder / 'text'}:{number}"
        if name not in files:
            raise DataUnavailable(f"{where} names '{name}', of which wav.scp says nothing", f"add it to {listed}")
        yield files[name], words, where


def _table(table: Path) -> Iterator[tuple[Path, str, str]]:
    for number, row in _records(table):
        file, words = (next((row[key] for key in keys if row.get(key) is not None), None) for keys in (_FILE_KEYS, TEXT_KEYS))
        where = f"{table}:{number}"
        if not isinstance(file, str) or not isinstance(words, str):
            lacking = (
                f"a sound file ({', '.join(_FILE_KEYS)})" if not isinstance(file, str) else f"words ({', '.join(TEXT_KEYS)})"
            )
            raise DataUnavailable(
                f"{where} has no column for {lacking}; it has {', '.join(map(str, row))}", "rename the column"
            )
        yield _with_suffix(table.parent / file), words, where


def _records(table: Path) -> Iterator[tuple[int, dict[str, object]]]:
    lines = _text(table).splitlines()
    if table.suffix == ".jsonl":
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise DataUnavailable(f"{table}:{number} is no JSON: {error.msg}", "write one object a line") from None
            if row is not None and not isinstance(row, dict):
                raise DataUnavailable(f"{table}:{number} is no JSON object", "write one object a line")
            if row:
                yield number, row
        return
    reader = csv.DictReader(lines, delimiter="\t" if table.suffix == ".tsv" else ",")
    for row in reader:
        yield reader.line_num, {str(key): value for key, value in row.items()}


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            name, *rest = line.split(maxsplit=1)
            yield number, name, rest[0] if rest else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataUnavailable(f"{path} is no text in UTF-8", "convert it: iconv -f latin1 -t utf-8") from None


def _with_suffix(path: Path) -> Path:
    """Returns the file, or the one of that name with a suffix of a sound file."""
    found = (path.with_name(path.name + suffix) for suffix in ("", *SOUND_FILES))
    return next((one for one in found if one.is_file()), path)


def _checked(path: Path, words: str, where: str) -> Clip:
    if not path.is_file():
        raise DataUnavailable(f"{where} names {path.name}, which is not there", "put the file there, or take the line away")
    if not words.strip():
        raise DataUnavailable(f"{where} says nothing of {path.name}", "write its words, or take the line and the file away")
    return Clip(path, words.strip())
