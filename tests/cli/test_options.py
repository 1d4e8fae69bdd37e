"""The shell completes names of recipes and of their variants."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _completed(*typed: str) -> list[str]:
    """What bash is offered for the last of the words that were typed behind `recipe`."""
    environment = {
        **os.environ,
        "_RECIPE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("recipe", *typed)),
        "COMP_CWORD": str(len(typed)),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("RECIPE_CATALOG", None)
    command = [sys.executable, "-c", "from runner.cli import cli; cli.main(prog_name='recipe')"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("show", "phi-4-rea"), ["phi-4-reasoning", "phi-4-reasoning-plus"]),
        (("run", "smollm2"), ["smollm2-135m-instruct", "smollm2-135m-instruct/"]),
        (
            ("try", "smollm2-135m-instruct/cpu-i"),
            ["smollm2-135m-instruct/cpu-int4", "smollm2-135m-instruct/cpu-int8"],
        ),
        (("show", "nothing-like-it"), []),
        (("--catalog", "no-such-folder", "show", "phi"), []),
        (("--catalog", "recipes/whisper", "show", "whisper-m"), ["whisper-medium", "whisper-medium/"]),
    ],
)
def test_names_are_completed(typed: tuple[str, ...], offered: list[str]) -> None:
    assert _completed(*typed) == offered
