"""Speech from data sets that the `datasets` package reads."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from runner.data.sound import read_sound
from runner.data.speech_dataset import MOST, names_dataset, speech_dataset
from runner.errors import DataUnavailable
from runner.models.sound_windows import wav_bytes


@pytest.fixture
def name(tmp_path, monkeypatch) -> str:
    """A data set of 150 sounds in `org/speech` below the current folder, each as many samples long as its text says."""
    sounds = [{"bytes": wav_bytes(np.zeros(100 + at, np.float32)), "path": f"{at}.wav"} for at in range(150)]
    rows = datasets.Dataset.from_dict({"audio": sounds, "sentence": [f" {100 + at} " for at in range(150)]})
    folder = tmp_path / "org" / "speech"
    folder.mkdir(parents=True)
    rows.cast_column("audio", datasets.Audio(decode=False)).to_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    return "org/speech"


def test_clips_are_chosen_evenly_and_keep_their_words(name, tmp_path):
    clips = speech_dataset(f"{name}::test", tmp_path)
    assert 1 < len(clips) <= MOST
    assert [len(read_sound(clip.path)) for clip in clips] == [int(clip.text) for clip in clips]
    assert speech_dataset(name, tmp_path) == clips


def test_what_is_not_there_is_told(name, tmp_path):
    with pytest.raises(DataUnavailable, match="org/speech"):
        speech_dataset(f"{name}::validation", tmp_path)
    folder = tmp_path / "org" / "words"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(folder / "words.parquet")
    with pytest.raises(DataUnavailable, match="no column of sounds"):
        speech_dataset("org/words::train", tmp_path)


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("org/name", True),
        ("org/name:clean", True),
        ("org/name::test", True),
        ("a/b/c", False),
        ("nothing", False),
        ("../b", False),
    ],
)
def test_names_of_data_sets(text, is_name):
    assert names_dataset(text) is is_name
