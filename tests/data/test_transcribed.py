"""Folders of speech in the layouts that people keep them in."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from runner.data.transcribed import transcribed
from runner.errors import DataUnavailable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav", "deep/1-2-0.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(bytes(320))
    return tmp_path


def told(folder: Path) -> dict[str, str]:
    return {str(clip.path.relative_to(folder)): clip.text for clip in transcribed(folder)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("transcripts.txt", "a one word\nb.wav\ttwo\n"),
        ("metadata.csv", 'file_name,text\na.wav,"one word"\nb.wav,two\n'),
        ("transcripts.tsv", "\ufeffpath\tsentence\tage\na\tone word\t9\nb.wav\ttwo\t\n"),
        ("metadata.jsonl", json.dumps({"audio_filepath": "a.wav", "text": "one word"}) + '\n\n{"file":"b","text":"two"}\n'),
    ],
)
def test_a_file_lists_the_clips(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    assert told(folder) == {"a.wav": "one word", "b.wav": "two"}


def test_librispeech_kaldi_and_a_text_beside_each(folder: Path) -> None:
    (folder / "deep" / "1-2.trans.txt").write_text("1-2-0 HE SAID SO\n")
    assert told(folder) == {"deep/1-2-0.wav": "HE SAID SO"}
    (folder / "wav.scp").write_text("u1 a.wav\n")
    (folder / "text").write_text("u1 one word\n")
    assert told(folder) == {"a.wav": "one word"}
    for name in ("wav.scp", "text", "deep/1-2.trans.txt"):
        (folder / name).unlink()
    for name in ("a.txt", "b.txt", "deep/1-2-0.txt"):
        (folder / name).write_text(f"{name}\n")
    assert told(folder) == {"a.wav": "a.txt", "b.wav": "b.txt", "deep/1-2-0.wav": "deep/1-2-0.txt"}
    (folder / "b.txt").unlink()
    with pytest.raises(DataUnavailable, match=r"b\.wav has no transcript: there is no b\.txt beside it"):
        transcribed(folder)


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "nothing in .* says what the sound files in it say"),
        ({"metadata.csv": "file_name,text\nc.wav,words\n"}, r"metadata\.csv:2 names c\.wav, which is not there"),
        ({"metadata.csv": "file_name,text\na.wav, \n"}, r"metadata\.csv:2 says nothing of a\.wav"),
        ({"metadata.csv": "file_name,words\na.wav,x\n"}, "no column for words .*it has file_name, words"),
        ({"metadata.jsonl": "{\n"}, r"metadata\.jsonl:1 is no JSON"),
        ({"metadata.jsonl": "[1]\n"}, r"metadata\.jsonl:1 is no JSON object"),
        ({"wav.scp": "u1 sox a.wav |\n", "text": "u1 x\n"}, r"wav\.scp:1 is a command"),
        ({"wav.scp": "u1 a.wav\n", "text": "u2 x\n"}, "names 'u2', of which wav.scp says nothing"),
    ],
)
def test_what_is_missing_is_told(folder: Path, files: dict[str, str], cause: str) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(DataUnavailable, match=cause):
        transcribed(folder)
