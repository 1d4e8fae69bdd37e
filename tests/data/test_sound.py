import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.data.sound import read_sound, speech
from runner.errors import DataUnavailable
from runner.models.sound_windows import SAMPLE_RATE, is_silent, quietest, wav_bytes, windows


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
def test_a_tone_keeps_its_pitch_and_loudness_at_another_rate(tmp_path: Path, rate: int) -> None:
    made = read_sound(write(tmp_path / "tone.wav", tone(rate)[:, None], rate))
    assert len(made) == SAMPLE_RATE
    inside = slice(400, -400)
    assert np.abs(made[inside] - tone(SAMPLE_RATE)[inside]).max() < 5e-3


def test_what_16_khz_cannot_hold_is_filtered_and_not_folded_back(tmp_path: Path) -> None:
    made = read_sound(write(tmp_path / "tone.wav", tone(44_100, pitch=12_000.0)[:, None], 44_100))
    assert np.abs(made[400:-400]).max() < 0.02


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_compressed_sound_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(44_100), 44_100)
    made = read_sound(path)
    assert len(made) == pytest.approx(SAMPLE_RATE, rel=0.1)
    assert np.sqrt(np.mean(made[2000:-2000] ** 2)) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_floats_that_are_no_numbers_are_silence(tmp_path: Path) -> None:
    samples = np.array([0.5, np.nan, np.inf, -2.0], np.float32)
    soundfile.write(tmp_path / "float.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    assert read_sound(tmp_path / "float.wav") == pytest.approx([0.5, 0, 0, -2.0])
    assert wav_bytes(read_sound(tmp_path / "float.wav"))[-2:] == (-32767).to_bytes(2, "little", signed=True)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_stereo_of_any_width_becomes_mono(tmp_path: Path, width: int) -> None:
    left = tone(SAMPLE_RATE)
    path = write(tmp_path / "stereo.wav", np.stack([left, np.zeros_like(left)], axis=1), SAMPLE_RATE, width)
    assert np.abs(read_sound(path) - left / 2).max() < (0.02 if width == 1 else 1e-4)


def test_written_sound_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav_bytes(tone(SAMPLE_RATE)))
    assert np.abs(read_sound(path) - tone(SAMPLE_RATE)).max() < 1e-4


def test_half_an_hour_is_cut_in_pauses_and_nothing_is_lost() -> None:
    sound = 0.1 * np.random.default_rng(1).standard_normal(30 * 60 * SAMPLE_RATE + 1).astype(np.float32)
    for second in range(7, 30 * 60, 7):
        sound[second * SAMPLE_RATE : second * SAMPLE_RATE + SAMPLE_RATE // 2] *= 0.01
    pieces = windows(sound)
    assert np.array_equal(np.concatenate(pieces), sound)
    assert max(map(len, pieces)) <= 30 * SAMPLE_RATE
    assert min(map(len, pieces[:-1])) >= 20 * SAMPLE_RATE
    assert all(np.abs(piece[-SAMPLE_RATE // 20 :]).max() < 0.01 for piece in pieces[:-1])


def test_sound_without_a_pause_is_cut_as_well() -> None:
    pieces = windows(np.ones(70 * SAMPLE_RATE, np.float32))
    assert max(map(len, pieces)) <= 30 * SAMPLE_RATE
    assert sum(map(len, pieces)) == 70 * SAMPLE_RATE
    assert windows(np.zeros(0, np.float32)) == []
    assert [len(piece) for piece in windows(np.zeros(1, np.float32))] == [1]
    assert quietest(np.ones(10, np.float32), 2, 8) == 5


def test_silence_is_told_from_a_whisper() -> None:
    assert is_silent(np.zeros(SAMPLE_RATE + 1, np.float32))
    assert is_silent(1e-4 * tone(SAMPLE_RATE))
    assert not is_silent(np.pad(1e-2 * tone(SAMPLE_RATE, 0.1), SAMPLE_RATE))


@pytest.mark.parametrize("content", [b"", b"these are words and no sound", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_what_is_no_sound_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"text\.wav is no readable sound file: \w+"):
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


def test_channels_that_take_one_another_out_are_heard(tmp_path):
    tone = np.sin(np.arange(16_000) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], axis=1), 16_000)
    assert np.abs(read_sound(tmp_path / "opposite.wav")).max() > 0.4
