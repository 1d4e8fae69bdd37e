"""Sound files for speech models: wav files as mono samples at 16 kHz, and folders of them with transcripts.

A folder of speech holds wav files and `transcripts.txt`: a line a clip, the file's name (with or without ``.wav``), a space or
a tab, and the words.
"""

from __future__ import annotations

import math
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[Any, Any]

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30  # what Whisper hears at once
TRANSCRIPTS = "transcripts.txt"
_CROSSINGS = 16  # zeros of the sinc on each side of a sample
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
    """Returns a wav file as mono samples at 16 kHz, fp32 between -1 and 1; channels are averaged.

    Raises:
        DataUnavailable: it is not there, no wav file with integer samples, or has no sound in it.
    """
    if not path.is_file():
        raise DataUnavailable(f"there is no file '{path}'", "a speech model takes the path of a wav file")
    try:
        with wave.open(str(path), "rb") as opened:
            rate, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            content = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise DataUnavailable(f"{path} is no readable wav file: {str(error) or 'it ends too early'}", _REMEDY) from None
    content = content[: len(content) // (width * channels) * width * channels]
    if not content or not rate:
        raise DataUnavailable(f"{path} has no sound in it", "give a file that somebody speaks in")
    return resampled(_floats(content, width).reshape(-1, channels).mean(axis=1), rate)


def _floats(content: bytes, width: int) -> Any:
    """Returns samples of `width` bytes as fp32: 8 bits are unsigned, wider ones signed and little-endian."""
    import numpy as np

    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    padded: Samples = np.zeros((len(content) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return padded.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def resampled(samples: Samples, rate: int) -> Samples:
    """Returns the sound at 16 kHz: a windowed sinc, whose cut-off lies below half of the lower rate.

    Args:
        samples: fp32 [n].
        rate: samples a second.
    """
    import numpy as np

    if rate == SAMPLE_RATE:
        return samples.astype(np.float32)
    common = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // common, rate // common
    cutoff = min(1.0, up / down)
    reach = math.ceil(_CROSSINGS / cutoff)
    padded = np.pad(samples, (reach, reach + down)).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    count = max(1, len(samples) * up // down)
    made: Samples = np.zeros(-(-count // up) * up, np.float32)
    for phase in range(up):
        start, rest = divmod(phase * down, up)
        distance = np.arange(-reach, reach + 1) - rest / up
        kernel = cutoff * np.sinc(cutoff * distance) * np.cos(np.pi / 2 * np.clip(distance / (reach + 1), -1, 1)) ** 2
        rows = views[start : len(samples) + down : down]
        found = rows @ (kernel / kernel.sum()).astype(np.float32)
        places = made[phase::up]
        places[: len(found)] = found[: len(places)]
    return made[:count]


def windows(samples: Samples) -> list[Samples]:
    """Returns the sound in pieces of 30 seconds; the last one is as long as what is left."""
    size = WINDOW_SECONDS * SAMPLE_RATE
    return [samples[at : at + size] for at in range(0, len(samples), size)]


def wav_bytes(samples: Samples) -> bytes:
    """Returns the sound as a 16-bit wav file."""
    import io

    import numpy as np

    written = io.BytesIO()
    with wave.open(written, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(SAMPLE_RATE)
        opened.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return written.getvalue()
