"""Sound as speech models hear it: mono at 16 kHz, in windows that end where nobody speaks."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[Any, Any]

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30  # what Whisper hears at once
_FRAME = SAMPLE_RATE // 50  # 20 ms
_PAUSE_FRAMES = 15
_SILENCE_DB = -70


def windows(samples: Samples) -> list[Samples]:
    """Returns the sound in pieces of at most 30 seconds, which lie in the memory of `samples`.

    A longer sound is cut at the quietest place in the last third of each half minute, so that no word is lost at a border.
    """
    size = WINDOW_SECONDS * SAMPLE_RATE
    pieces = []
    while len(samples) > size:
        cut = quietest(samples, 2 * size // 3, size)
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples] if len(samples) else pieces


def quietest(samples: Samples, start: int, end: int) -> int:
    """Returns the sample between `start` and `end` in the middle of the quietest 0.3 seconds; the last of several.

    Where those bounds lie closer together than that, it is the sample halfway.
    """
    import numpy as np

    frames = (end - start) // _FRAME
    if frames < _PAUSE_FRAMES:
        return (start + end) // 2
    power = np.square(samples[start : start + frames * _FRAME].reshape(frames, _FRAME)).mean(axis=1, dtype=np.float64)
    pauses = np.lib.stride_tricks.sliding_window_view(power, _PAUSE_FRAMES).max(axis=1)
    last = len(pauses) - 1 - int(np.argmin(pauses[::-1]))
    return start + last * _FRAME + _PAUSE_FRAMES * _FRAME // 2


def is_silent(samples: Samples) -> bool:
    """Returns whether there is nothing to hear: no 20 ms are louder than -70 dB of the full scale."""
    import numpy as np

    frames = np.pad(samples, (0, -len(samples) % _FRAME)).reshape(-1, _FRAME)
    return bool((np.square(frames).mean(axis=1) < 10 ** (_SILENCE_DB / 10)).all())


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
