"""Sound files for speech models as mono samples at 16 kHz, and folders of them with transcripts.

A folder of speech holds wav files and `transcripts.txt`: a line a clip, the file's name (with or without ``.wav``), a space or
a tab, and the words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, PackageMissing, Problem
from runner.models.sound_windows import SAMPLE_RATE

if TYPE_CHECKING:
    from runner.models.sound_windows import Samples

TRANSCRIPTS = "transcripts.txt"
_CANCELLED = 1e-3
_BLOCK = 1 << 20  # samples that are read at once
_REMEDY = "convert it: ffmpeg -i FILE -ar 16000 -ac 1 -c:a pcm_s16le SPEECH.wav"


@dataclass(frozen=True)
class Clip:
    """A sound file and what is said in it."""

    path: Path
    text: str


def speech(folder: Path) -> list[Clip]:
    """Returns the clips of a folder, in the order of its transcripts.

    Raises:
        DataUnavailable: the folder has no transcripts, or a line of them names no wav file or says nothing.
    """
    listed = folder / TRANSCRIPTS
    if not listed.is_file():
        raise DataUnavailable(f"there is no {TRANSCRIPTS} in {folder}", "a line a clip: the wav file's name, then its words")
    clips = []
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, *words = line.split(maxsplit=1)
        path = folder / (name if name.lower().endswith(".wav") else f"{name}.wav")
        if not path.is_file() or not words:
            missing = f"{path.name}, which is not there" if not path.is_file() else "no words"
            raise DataUnavailable(f"{listed}:{number} names {missing}", "a line a clip: the wav file's name, then its words")
        clips.append(Clip(path, words[0].strip()))
    if not clips:
        raise DataUnavailable(f"{listed} has no lines", "a line a clip: the wav file's name, then its words")
    return clips


def read_sound(path: Path) -> Samples:
    """Returns a sound file as mono samples at 16 kHz, fp32; channels are averaged.

    Where they take one another out, because one of them is the other upside down, the first is taken alone.

    Every format that libsndfile reads is taken: wav of integers or floats, flac, mp3, ogg and others.

    Raises:
        DataUnavailable: it is not there, no sound file, or has no sound in it.
        PackageMissing: soundfile is not installed.
    """
    import numpy as np

    if not path.is_file():
        raise DataUnavailable(f"there is no file '{path}'", "a speech model takes the path of a sound file")
    for package in ("soundfile", "soxr"):
        if find_spec(package) is None:
            cause = "sound files are read by soundfile and soxr"
            raise PackageMissing(Problem("package-missing", cause, remedy="pip install soundfile soxr"))
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as opened:
            converter = soxr.ResampleStream(opened.samplerate, SAMPLE_RATE, 1)
            pieces = [converter.resample_chunk(_mixed(block)) for block in _blocks(opened)]
        pieces.append(converter.resample_chunk(np.zeros(0, np.float32), last=True))
    except (soundfile.SoundFileError, TypeError) as error:  # a TypeError asks for what a file without a header lacks
        told = getattr(error, "error_string", str(error)).rstrip(".")
        raise DataUnavailable(f"{path} is no readable sound file: {told}", _REMEDY) from None
    samples: Samples = np.concatenate(pieces)
    if not len(samples):
        raise DataUnavailable(f"{path} has no sound in it", "give a file that somebody speaks in")
    return samples


def _mixed(block: Samples) -> Samples:
    """Returns the mean of the channels [samples]; the first channel where the mean keeps next to nothing of their power."""
    import numpy as np

    mean: Samples = block.mean(axis=1)
    first: Samples = block[:, 0]
    return first if np.square(mean).sum() < _CANCELLED * np.square(block).mean(axis=1).sum() else mean


def _blocks(opened: Any) -> Iterator[Samples]:
    """Yields fp32 [samples, channels]; what is no number is taken for silence."""
    import numpy as np

    for block in opened.blocks(_BLOCK, dtype="float32", always_2d=True):
        yield np.nan_to_num(block, copy=False, posinf=0, neginf=0)
