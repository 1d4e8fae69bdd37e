"""Locks: made of what is here, and held against what a run would take."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from runner.errors import InvalidRecipe, ModelUnavailable
from runner.models import package_weights
from runner.models.digest import DigestMemo
from runner.models.lock import NAME, Lock, hold_against, make_lock, pinned, read_lock
from runner.models.source import Access
from runner.recipe.info import HubSource, PackageSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = HubSource(hub="org/name")
PACKAGE = PackageSource(package="weights-of-it==1.0", format="hf", licence="MIT")


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"), offline=True)


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("about", encoding="utf-8")
    return folder


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The model in the hub's cache, whose branch `main` is at the commit."""
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT)


def test_of_a_hub_model_the_commit_and_the_files_are_recorded(access: Access, snapshot: Path) -> None:
    lock = make_lock("mine", "org/name", [HUB], access)
    data = json.loads(lock.to_json())
    assert data["source"] == {"hub": "org/name", "revision": COMMIT}
    weights = {"file": "model.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    assert weights in data["files"]
    assert [file["file"] for file in data["files"]] == ["config.json", "model.safetensors"]


def test_of_a_package_its_wheel_is_recorded(access: Access) -> None:
    home = access.models / "weights-of-it-1.0"
    write_model(home / "inside")
    with pytest.raises(ModelUnavailable, match="which wheel"):
        make_lock("mine", "org/name", [PACKAGE], access)
    wheel = {"file": "weights_of_it-1.0-py3-none-any.whl", "sha256": "0" * 64, "bytes": 9}
    (home / ".wheel.json").write_text(json.dumps(wheel), encoding="utf-8")
    assert package_weights.wheel_of(PACKAGE, access.models, True, print) == package_weights.Wheel(**wheel)  # type: ignore[arg-type]
    lock = make_lock("mine", "org/name", [HUB, PACKAGE], access)
    assert json.loads(lock.to_json())["source"] == {"package": "weights-of-it==1.0", "wheel": wheel}


def test_what_is_not_here_is_not_invented(access: Access) -> None:
    with pytest.raises(ModelUnavailable, match="not-resolved"):
        make_lock("mine", "org/name", [HUB, PACKAGE], access)


def test_a_snapshot_without_a_commit_is_not_locked(access: Access, snapshot: Path) -> None:
    (snapshot.parents[1] / "refs" / "main").unlink()
    shutil.move(snapshot, snapshot.with_name("main"))
    with pytest.raises(ModelUnavailable, match="does not tell the commit"):
        make_lock("mine", "org/name", [HUB], access)


@pytest.fixture
def locked(access: Access, snapshot: Path, tmp_path: Path) -> tuple[Lock, Path]:
    """A lock as it is read from a recipe's folder, and that folder."""
    (tmp_path / NAME).write_text(make_lock("mine", "org/name", [HUB], access).to_json(), encoding="utf-8")
    return read_lock(tmp_path, "mine"), tmp_path


def test_the_locked_model_passes(locked: tuple[Lock, Path], snapshot: Path, access: Access) -> None:
    lock, recipe = locked
    hold_against(lock, snapshot, access.memo, recipe)
    assert pinned(lock, [PACKAGE, HUB], recipe) == [HubSource(hub="org/name", revision=COMMIT)]


def test_every_other_file_is_named(locked: tuple[Lock, Path], snapshot: Path, access: Access) -> None:
    lock, recipe = locked
    (snapshot / "model.safetensors").write_bytes(b"others")
    (snapshot / "config.json").unlink()
    (snapshot / "extra.safetensors").write_bytes(b"more")
    with pytest.raises(InvalidRecipe) as caught:
        hold_against(lock, snapshot, access.memo, recipe)
    told = str(caught.value)
    assert "config.json: expected by the lock, not found" in told
    assert f"model.safetensors: expected sha256 {hashlib.sha256(b'weights').hexdigest()}, found " in told
    assert "extra.safetensors: found in" in told
    assert "recipe lock mine" in told


def test_another_revision_is_named(locked: tuple[Lock, Path], snapshot: Path, access: Access) -> None:
    lock, recipe = locked
    moved = snapshot.with_name("f" * 40)
    shutil.copytree(snapshot, moved)
    with pytest.raises(InvalidRecipe, match=f"the lock says revision {COMMIT}, found {'f' * 40}"):
        hold_against(lock, moved, access.memo, recipe)


def test_a_lock_of_another_source_is_outdated(locked: tuple[Lock, Path]) -> None:
    lock, recipe = locked
    with pytest.raises(InvalidRecipe, match="lock-outdated"):
        pinned(lock, [PACKAGE], recipe)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [(COMMIT, "main", "revision"), ('"lock": 1', '"lock": 2', "lock"), ('"bytes": 7', '"bytes": "seven"', "bytes")],
)
def test_a_broken_lock_names_its_line(locked: tuple[Lock, Path], old: str, new: str, told: str) -> None:
    path = locked[1] / NAME
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(InvalidRecipe) as caught:
        read_lock(locked[1], "mine")
    place = caught.value.problems[0].place
    assert place is not None and place.line is not None
    assert told in str(caught.value)


def test_without_a_lock_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="recipe lock mine"):
        read_lock(tmp_path, "mine")
