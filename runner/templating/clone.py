"""The clone that a recipe folder lies in: its templates, its sets of sample data, and its locks of tested versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runner.errors import InvalidRecipe, Place, Problem
from runner.targets.target import Target

PIPELINE_SUFFIX = ".json.j2"


@dataclass(frozen=True)
class Clone:
    """The clone that holds the templates and locks.

    Attributes:
        root: its folder.
    """

    root: Path

    @property
    def templates(self) -> Path:
        """Returns the folder of templates."""
        return self.root / "templates"

    @property
    def samples(self) -> Path:
        """Returns the folder whose folders are sets of sample data."""
        return self.templates / "samples"

    @property
    def pipelines(self) -> list[str]:
        """Returns the names that `pipeline` of info.yml may have."""
        return sorted(
            path.name.removesuffix(PIPELINE_SUFFIX) for path in (self.templates / "pipelines").glob(f"*{PIPELINE_SUFFIX}")
        )

    def lock(self, target: Target) -> Path:
        """Returns the file of the versions that were tested together for a target."""
        return self.root / "constraints" / f"{target.name}.txt"

    def pins(self, target: Target) -> dict[str, str]:
        """Returns the versions that a target's lock names.

        Raises:
            InvalidRecipe: there is no such lock.
        """
        path = self.lock(target)
        if not path.is_file():
            raise InvalidRecipe(Problem("missing-file", "there is no such lock", Place(str(path))))
        return read_pins(path.read_text(encoding="utf-8"))


def read_pins(text: str) -> dict[str, str]:
    """Returns name to version of every `name==version` line, names in PEP 503's normal form."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", text, re.MULTILINE)
    return {normal_name(name): version for name, version in found}


def normal_name(name: str) -> str:
    """Returns a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def clone_of(folder: Path) -> Clone:
    """Returns the clone that a recipe folder lies in: the nearest folder above with templates; else that of this runner."""
    above = [parent for parent in folder.resolve().parents if (parent / "templates" / "recipe").is_dir()]
    return Clone(above[0] if above else Path(__file__).resolve().parents[2])
