import wave
from pathlib import Path

import numpy as np
import pytest

from runner.data.sound import SAMPLE_RATE, read_sound, resampled, speech, wav_bytes, windows
from runner.errors import DataUnavailable


def tone(rate: int, seconds: float = 1.0, pitch: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def write(path: Path, frames: np.ndarray, rate: int, width: int = 2) -> Path:
    """Writes fp32 [samples, channels]."""
    scaled = np.round(frames * (2 ** (8 * width - 1) - 1))
    if width == 1:
        content = (scaled + 128).astype(np.uint8).tobytes()
    else:
        content = np.ascontiguousarray(scaled.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :width]).tobytes()
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(frames.shape[1])
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(content)
    return path


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_loudness_at_another_rate(rate: int) -> None:
    made = resampled(tone(rate), rate)
    assert len(made) == SAMPLE_RATE
    inside = slice(400, -400)
    assert np.abs(made[inside] - tone(SAMPLE_RATE)[inside]).max() < 5e-3


def test_what_16_khz_cannot_hold_is_filtered_and_not_folded_back() -> None:
    made = resampled(tone(44_100, pitch=12_000.0), 44_100)
    assert np.abs(made[400:-400]).max() < 0.02


@pytest.mark.parametrize("width", [1, 2, 3])
def test_stereo_of_any_width_becomes_mono(tmp_path: Path, width: int) -> None:
    left = tone(SAMPLE_RATE)
    path = write(tmp_path / "stereo.wav", np.stack([left, np.zeros_like(left)], axis=1), SAMPLE_RATE, width)
    assert np.abs(read_sound(path) - left / 2).max() < (0.02 if width == 1 else 1e-4)


def test_written_sound_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav_bytes(tone(SAMPLE_RATE)))
    assert np.abs(read_sound(path) - tone(SAMPLE_RATE)).max() < 1e-4


def test_half_an_hour_is_cut_into_windows() -> None:
    pieces = windows(np.zeros(30 * 60 * SAMPLE_RATE + 1, np.float32))
    assert [len(piece) for piece in (pieces[0], pieces[-1])] == [30 * SAMPLE_RATE, 1]
    assert len(pieces) == 61


@pytest.mark.parametrize("content", [b"", b"these are words and no sound", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_what_is_no_wav_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"text\.wav is no readable wav file: \w+"):
        read_sound(path)


def test_a_wav_file_without_sound_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="has no sound in it"):
        read_sound(write(tmp_path / "empty.wav", np.zeros((0, 1), np.float32), SAMPLE_RATE))


def test_transcripts_name_clips_with_or_without_their_ending(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.wav", tone(SAMPLE_RATE)[:, None], SAMPLE_RATE)
    (tmp_path / "transcripts.txt").write_text("two.wav second words\n\none\tfirst words\n")
    assert [(clip.path.name, clip.text) for clip in speech(tmp_path)] == [
        ("two.wav", "second words"),
        ("one.wav", "first words"),
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("gone.wav words", r"transcripts\.txt:1 names gone\.wav, which is not there"),
        ("here.wav words\nhere.wav", r"transcripts\.txt:2 names no words"),
        ("\n", "has no lines"),
        (None, r"there is no transcripts\.txt"),
    ],
)
def test_bad_transcripts_say_where(tmp_path: Path, lines: str | None, told: str) -> None:
    write(tmp_path / "here.wav", tone(SAMPLE_RATE)[:, None], SAMPLE_RATE)
    if lines is not None:
        (tmp_path / "transcripts.txt").write_text(lines)
    with pytest.raises(DataUnavailable, match=told):
        speech(tmp_path)
