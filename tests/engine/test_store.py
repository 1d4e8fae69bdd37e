"""The store holds whole entries or none, whatever happens around it."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.cli import run_command
from runner.engine.places import Places
from runner.engine.store import SMALL_FILE, Entry, Store, link_or_copy
from runner.models.digest import DigestMemo, sha256_of_file
from runner.models.handle import ModelHandle

KEY = "ab" * 32


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "cache", tmp_path / "models")


@pytest.fixture
def store(places: Places) -> Store:
    return Store(places, DigestMemo(places.digests))


def put(store: Store, key: str = KEY, **files: bytes) -> Entry:
    with store.workspace() as folder:
        output = folder / "output"
        output.mkdir()
        for name, content in (files or {"model.onnx": b"graph"}).items():
            (output / name).write_bytes(content)
        handle = ModelHandle("onnx", output, "model.onnx", "fill-mask", {"hidden_size": 8})
        return store.put(key, output, {"step": "s", "pass": "P", "handle": handle.to_json(), "seconds": 1.0, "ingredients": {}})


def test_what_is_put_is_found(store: Store, places: Places) -> None:
    assert store.get(KEY) is None
    put(store)
    entry = store.get(KEY)
    assert entry is not None
    assert entry.model.path.read_bytes() == b"graph"
    assert entry.model.attributes == {"hidden_size": 8}
    assert entry.size == 5
    assert [one.fingerprint for one in store.entries()] == [KEY]
    assert list(places.scratch.iterdir()) == []


@pytest.mark.parametrize("damage", ["change", "truncate", "delete", "record", "no-record"])
def test_a_damaged_entry_counts_as_none(store: Store, places: Places, damage: str) -> None:
    entry = put(store)
    graph = entry.files / "model.onnx"
    match damage:
        case "change":
            graph.write_bytes(b"grapf")
        case "truncate":
            graph.write_bytes(b"gra")
        case "delete":
            graph.unlink()
        case "record":
            (entry.folder / "record.json").write_text("{")
        case "no-record":
            (entry.folder / "record.json").unlink()
    fresh = Store(places, DigestMemo(places.digests))
    assert fresh.get(KEY) is None
    put(fresh)
    assert fresh.get(KEY) is not None


def test_silent_corruption_is_found_by_a_thorough_look(store: Store) -> None:
    entry = put(store)
    graph = entry.files / "model.onnx"
    before = graph.stat()
    graph.write_bytes(b"grapf")
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.damage(entry, thorough=True)


def test_an_exception_in_the_workspace_leaves_nothing(store: Store, places: Places) -> None:
    with pytest.raises(RuntimeError), store.workspace() as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(places.scratch.iterdir()) == []


def test_leftovers_of_dead_processes_are_found(store: Store, places: Places) -> None:
    (places.scratch / "999999999-abc").mkdir(parents=True)
    (places.scratch / f"{os.getpid()}-abc").mkdir()
    assert [path.name for path in store.leftovers()] == ["999999999-abc"]


def test_one_maker_at_a_time(places: Places) -> None:
    made = []

    def make() -> None:
        mine = Store(places, DigestMemo(places.digests))
        with mine.lock(KEY):
            if mine.get(KEY) is None:
                put(mine)
                made.append(1)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_small_files_are_copied_and_large_ones_linked(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    large.write_bytes(b"x" * (SMALL_FILE + 1))
    link_or_copy(small, tmp_path / "out" / "small")
    link_or_copy(large, tmp_path / "out" / "large")
    (tmp_path / "out" / "small").write_bytes(b"edited")
    assert small.read_bytes() == b"x"
    assert (tmp_path / "out" / "large").samefile(large)


moments = itertools.count(1000, 1000)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(st.binary(max_size=64), min_size=1, max_size=6))
def test_the_memo_never_tells_a_stale_digest(tmp_path: Path, contents: list[bytes]) -> None:
    file = tmp_path / "f"
    memo_file = tmp_path / "memo.json"
    for content in contents:
        file.write_bytes(content)
        os.utime(file, ns=(0, next(moments)))  # every write has a time of its own, as on a disk
        with DigestMemo(memo_file) as memo:
            assert memo.of_file(file) == sha256_of_file(file)
    known = json.loads(memo_file.read_text())
    assert list(known) == [str(file.resolve())]


def test_a_broken_memo_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "memo.json").write_text("[broken")
    (tmp_path / "f").write_bytes(b"1")
    with DigestMemo(tmp_path / "memo.json") as memo:
        assert len(memo.of_file(tmp_path / "f")) == 64


@pytest.mark.skipif(os.name == "nt", reason="file modes")
def test_a_file_that_a_library_kept_to_itself_is_for_everybody(store: Store) -> None:
    with store.workspace() as folder:
        (folder / "output").mkdir()
        weights = folder / "output" / "model.onnx.data"
        weights.write_bytes(b"weights")
        usual = weights.stat().st_mode
        weights.chmod(0o600)
        handle = ModelHandle("onnx", folder / "output", "model.onnx", "fill-mask", {})
        record = {"step": "s", "pass": "P", "handle": handle.to_json(), "seconds": 1.0, "ingredients": {}}
        entry = store.put(KEY, folder / "output", record)
    assert (entry.files / "model.onnx.data").stat().st_mode == usual
    assert store.get(KEY) is not None


def test_what_interrupted_steps_left_goes_when_it_is_old(
    store: Store, places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, days in (("old", 40), ("new", 1)):
        folder = places.kept / name
        folder.mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(folder, (then, then))
    monkeypatch.setenv("RECIPE_CACHE", str(places.root))
    assert run_command(["cache", "gc"]) == 0
    assert "1 leftovers gone" in capsys.readouterr().out
    assert [path.name for path in store.unfinished()] == ["new"]


@pytest.mark.skipif(sys.platform != "linux", reason="files are spoilt on Linux only")
class TestTakenOver:
    """The last reader of an entry may spoil its files; while there is another one nobody may."""

    def test_the_only_reader_gets_the_files(self, store: Store, tmp_path: Path) -> None:
        entry = put(store)
        graph = (entry.files / "model.onnx").stat()
        with store.reading(KEY) as reader:
            assert store.take_over(entry, reader, tmp_path / "scratch") == {(graph.st_dev, graph.st_ino)}
        assert store.get(KEY) is None
        told = store.told(KEY)
        assert told is not None and told.size == 5 and entry.files.is_dir()
        store.empty(told)
        assert not entry.files.exists() and store.told(KEY) is not None

    def test_two_readers_keep_one_another_from_it(self, store: Store, tmp_path: Path) -> None:
        entry = put(store)
        with store.reading(KEY) as reader:
            with store.reading(KEY) as other:
                assert not store.take_over(entry, reader, tmp_path)
                assert not store.take_over(entry, other, tmp_path)
            assert store.get(KEY) is not None
            assert store.take_over(entry, reader, tmp_path)

    def test_nothing_is_taken_from_who_makes_it_anew(self, store: Store, tmp_path: Path) -> None:
        entry = put(store)
        with store.reading(KEY) as reader, store.lock(KEY):
            assert not store.take_over(entry, reader, tmp_path)

    def test_what_somebody_links_stays_his(self, store: Store, tmp_path: Path) -> None:
        entry = put(store, graph=b"graph", weights=b"weights")
        (tmp_path / "output").hardlink_to(entry.files / "graph")
        weights = (entry.files / "weights").stat()
        with store.reading(KEY) as reader:
            assert store.take_over(entry, reader, tmp_path / "scratch") == {(weights.st_dev, weights.st_ino)}
