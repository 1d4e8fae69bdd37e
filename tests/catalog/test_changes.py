"""What changed in a clone, as git tells it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runner.catalog.changes import changes_since
from runner.errors import UsageError


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone on a branch `mine` that left `main` with three files."""
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("kept", "changed", "deleted"):
        (tmp_path / name).write_text(name)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "start")
    git(tmp_path, "checkout", "-qb", "mine")
    return tmp_path


def names(clone: Path, base: str | None = None) -> list[str]:
    return [file.name for file in changes_since(clone, base).files]


def test_committed_uncommitted_new_and_deleted_files_count(clone: Path) -> None:
    assert names(clone) == []
    (clone / "committed").write_text("")
    git(clone, "add", "committed")
    git(clone, "commit", "-qm", "mine")
    (clone / "changed").write_text("otherwise")
    (clone / "deleted").unlink()
    (clone / "new äöü").write_text("")
    (clone / ".gitignore").write_text("ignored\n")
    (clone / "ignored").write_text("")
    assert names(clone) == [".gitignore", "changed", "committed", "deleted", "new äöü"]
    assert names(clone, "HEAD") == [".gitignore", "changed", "deleted", "new äöü"]


def test_what_happened_on_main_since_does_not_count(clone: Path) -> None:
    git(clone, "checkout", "-q", "main")
    (clone / "theirs").write_text("")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "theirs")
    git(clone, "checkout", "-q", "mine")
    assert names(clone) == []


def test_a_base_that_is_not_there_is_told(clone: Path) -> None:
    with pytest.raises(UsageError, match="there is no commit or branch 'nowhere'"):
        changes_since(clone, "nowhere")
    with pytest.raises(UsageError, match="unknown-base"):
        changes_since(clone, "--output=x")
    git(clone, "branch", "-m", "main", "trunk")
    with pytest.raises(UsageError, match=r"neither origin/main nor main"):
        changes_since(clone)


def test_unrelated_histories_are_told(clone: Path) -> None:
    git(clone, "checkout", "-q", "--orphan", "other")
    git(clone, "commit", "-qm", "other")
    with pytest.raises(UsageError, match="no-common-ancestor"):
        changes_since(clone)


def test_a_folder_without_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match="--all"):
        changes_since(tmp_path)
