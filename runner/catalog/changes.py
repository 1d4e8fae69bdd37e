"""Which files of a clone changed since a commit, as git tells it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError

MAIN = ("origin/main", "main")
_INSTEAD = "name recipes, or use --all or --spread"


@dataclass(frozen=True)
class Changes:
    """What differs between a commit and the working tree.

    Attributes:
        base: name of the branch or commit that was compared with.
        commit: the commit where the current one left it.
        files: files that were added, changed or deleted since, committed or not, as absolute paths in order.
    """

    base: str
    commit: str
    files: tuple[Path, ...]


def changes_since(folder: Path, base: str | None = None) -> Changes:
    """Returns what changed since the current commit left `base`; origin/main, else main, where none is named.

    Raises:
        UsageError: the folder is no git checkout, there is no such commit, or the two have no common ancestor here.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        raise UsageError("no-git-checkout", f"{folder} is no git checkout, so what changed is unknown", _INSTEAD)
    root = Path(top.strip())
    named = next((name for name in ([base] if base else MAIN) if _commit(root, name)), None)
    if named is None:
        asked = f"there is no commit or branch '{base}'" if base else "there is neither origin/main nor main"
        raise UsageError("unknown-base", asked, f"name what to compare with: --changed BASE; or {_INSTEAD}")
    ancestor = _git(root, "merge-base", "HEAD", named)
    if ancestor is None:
        cause = f"HEAD and {named} have no common ancestor in this checkout"
        raise UsageError("no-common-ancestor", cause, f"fetch more history ('git fetch --unshallow'), or {_INSTEAD}")
    commit = ancestor.strip()
    listed = (_git(root, "diff", "--name-only", "--no-renames", "-z", commit) or "").split("\0")
    listed += (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    return Changes(named, commit, tuple(root / name for name in sorted({name for name in listed if name})))


def _commit(root: Path, name: str) -> bool:
    return not name.startswith("-") and _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") is not None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
