"""The output folder is filled whole, and other people's files in it are safe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.engine.places import Places
from runner.engine.publish import check_writable, is_current, publish, read_receipt
from runner.engine.store import Entry, Store
from runner.errors import StoreError
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle


@pytest.fixture
def memo(tmp_path: Path) -> DigestMemo:
    return DigestMemo(tmp_path / "cache" / "digests.json")


def entry_with(tmp_path: Path, memo: DigestMemo, key: str, **files: str) -> Entry:
    store = Store(Places(tmp_path / "cache", tmp_path / "models"), memo)
    with store.workspace() as folder:
        (folder / "o").mkdir()
        for name, text in files.items():
            (folder / "o" / name).write_text(text)
        handle = ModelHandle("onnx", folder).to_json()
        return store.put(
            key * 32, folder / "o", {"step": "s", "pass": "P", "handle": handle, "seconds": 0.0, "ingredients": {}}
        )


def receipt_of(entry: Entry) -> dict[str, object]:
    return {"fingerprint": entry.fingerprint, "files": entry.record["files"]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_whole(tmp_path: Path, memo: DigestMemo) -> None:
    entry = entry_with(tmp_path, memo, "aa", model="1")
    output = tmp_path / "deep" / "out"
    publish(entry, output, receipt_of(entry), memo)
    assert names(output) == ["model", "receipt.json"]
    assert names(output.parent) == ["out"]
    assert is_current(entry, output, memo)
    receipt = read_receipt(output)
    assert receipt is not None
    assert receipt["fingerprint"] == entry.fingerprint


def test_an_earlier_result_is_replaced(tmp_path: Path, memo: DigestMemo) -> None:
    old, new = entry_with(tmp_path, memo, "aa", a="1", b="2"), entry_with(tmp_path, memo, "bb", b="3", c="4")
    for entry in (old, new):
        publish(entry, tmp_path / "out", receipt_of(entry), memo)
    assert names(tmp_path / "out") == ["b", "c", "receipt.json"]
    assert not is_current(old, tmp_path / "out", memo)


def test_files_of_others_stay(tmp_path: Path, memo: DigestMemo) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    old, new = entry_with(tmp_path, memo, "aa", a="1"), entry_with(tmp_path, memo, "bb", b="2")
    publish(old, output, receipt_of(old), memo)
    publish(new, output, receipt_of(new), memo)
    assert names(output) == ["b", "notes.txt", "receipt.json"]
    assert (output / "notes.txt").read_text() == "mine"


def test_a_file_of_others_is_never_overwritten(tmp_path: Path, memo: DigestMemo) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "a").write_text("mine")
    entry = entry_with(tmp_path, memo, "aa", a="1")
    with pytest.raises(StoreError, match="output-occupied"):
        publish(entry, output, receipt_of(entry), memo)
    assert names(output) == ["a"]
    assert (output / "a").read_text() == "mine"


def test_an_edited_output_is_not_current(tmp_path: Path, memo: DigestMemo) -> None:
    entry = entry_with(tmp_path, memo, "aa", model="1")
    publish(entry, tmp_path / "out", receipt_of(entry), memo)
    (tmp_path / "out" / "model").write_text("2")
    assert not is_current(entry, tmp_path / "out", memo)
    assert (entry.files / "model").read_text() == "1"


def test_places_that_cannot_be_written_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere/out")):
        with pytest.raises(StoreError):
            check_writable(output)
    check_writable(tmp_path / "fresh" / "out")
