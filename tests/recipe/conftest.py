"""Configurations with an imagined pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import model_validator

from runner.errors import InvalidRecipe
from runner.recipe.config import DataConfig
from runner.recipe.load import LoadedConfig, load_config
from runner.recipe.options import PassOptions


class Paint(PassOptions):
    """Options of an imagined pass."""

    retired: ClassVar[dict[str, str]] = {"use_brush": "paint is always brushed on"}
    renamed: ClassVar[dict[str, str]] = {"thickness": "coats"}
    colour: Literal["red", "green"] = "green"
    coats: int = 1
    note: str = ""
    shades: list[str] | None = None
    data: str | DataConfig | None = None

    @model_validator(mode="after")
    def _one_coat_of_green(self) -> Paint:
        if self.colour == "green" and self.coats > 8:
            raise ValueError("coats of green are too many")
        return self


def options_of(name: str) -> tuple[tuple[str, type[PassOptions]] | None, list[str]]:
    return (("Paint", Paint) if name.lower() == "paint" else None), ["Paint"]


def load(
    tmp_path: Path, content: str | dict[str, Any], *overrides: str, fragments: tuple[dict[str, Any], ...] = ()
) -> LoadedConfig:
    files = []
    for number, part in enumerate((content, *fragments)):
        files.append(tmp_path / f"c{number}.json")
        files[-1].write_text(part if isinstance(part, str) else json.dumps(part, indent=1))
    return load_config(files, options_of, overrides)


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "input_model": {"type": "HfModel", "model_path": "Org/Model"},
        "passes": {"p": {"type": "Paint"}},
        **changes,
    }


def problems(tmp_path: Path, content: str | dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        load(tmp_path, content, *overrides)
    return [str(problem).replace(str(tmp_path), "") for problem in caught.value.problems]
