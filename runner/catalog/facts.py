"""What a listing says of a recipe: the few facts of its info.yml that finding and choosing take.

`runner.recipe.info` says all, and validates it; importing it takes longer than reading sixty files. These facts are taken
from the plain content, so that a listing is instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runner.targets.target import target_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """What a listing says of a variant.

    Attributes:
        name: its name, such as ``cpu-int4``.
        file: its config file.
        provider: ONNX Runtime's execution provider.
        precision: precision of the weights; None where info.yml does not say.
        measured: whether results of it lie in the folder.
    """

    name: str
    file: str
    provider: str
    precision: str | None
    measured: bool

    @property
    def target(self) -> str:
        """Returns ``cpu``, ``cuda`` or ``dml``; the execution provider where that is none of ours."""
        return target_name(self.provider)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a listing says of a recipe.

    Attributes:
        file: its info.yml.
        family: path of the folder that holds it, below the catalogue's root.
        name: its id.
        aliases: other names that lead to it.
        title: its name as people write it.
        summary: one or two sentences.
        keywords: what else it is found by.
        arch: transformers' model_type.
        model: Hugging Face id.
        task: Hugging Face task.
        parameters: number of weights; None where nobody says.
        licence: the licence's name.
        gated: whether the hub asks to accept it.
        download_mb: megabytes (10^6 bytes) of weights; None where nobody says.
        deprecated: why it is not recommended any more; None where it is.
        variants: its optimised forms, the default first.
    """

    file: Path
    family: str
    name: str
    aliases: tuple[str, ...]
    title: str
    summary: str
    keywords: tuple[str, ...]
    arch: str
    model: str
    task: str
    parameters: int | None
    licence: str
    gated: bool
    download_mb: float | None
    deprecated: str | None
    variants: tuple[VariantFacts, ...]

    @property
    def folder(self) -> Path:
        """Returns the recipe's folder."""
        return self.file.parent


def facts_of(file: Path, family: str, info: Mapping[str, Any]) -> Facts:
    """Returns the facts of a recipe.

    Args:
        file: its info.yml.
        family: path of the folder that holds it.
        info: what info.yml says, as plain data.

    Raises:
        KeyError: a fact that every recipe has is missing.
        TypeError: a value is of another type than it should be.
        ValueError: there is no variant.
    """
    model, lifecycle = info["model"], info.get("lifecycle") or {}
    results = _results_of(file.parent)
    variants = tuple(_variant_of(one, results) for one in _list(info["recipes"]))
    if not variants:
        raise ValueError("no variant")
    deprecated = lifecycle.get("status") == "deprecated"
    return Facts(
        file=file,
        family=family,
        name=_a(str, info["name"]),
        aliases=_texts(info.get("aliases")),
        title=_a(str, info.get("title") or ""),
        summary=_a(str, info.get("summary") or "").strip(),
        keywords=_texts(info.get("keywords")),
        arch=_a(str, info["arch"]),
        model=_a(str, model["id"]),
        task=_a(str, model["task"]),
        parameters=_perhaps(int, model["parameters"]),
        licence=_a(str, model["licence"]),
        gated=_a(bool, model.get("gated", False)),
        download_mb=_megabytes(model["download_mb"]),
        deprecated=_a(str, lifecycle["reason"]).strip() if deprecated else None,
        variants=variants,
    )


def _variant_of(one: Mapping[str, Any], results: list[str]) -> VariantFacts:
    name = _a(str, one["name"])
    return VariantFacts(
        name=name,
        file=_a(str, one["file"]),
        provider=_a(str, one["ep"]),
        precision=_perhaps(str, one.get("precision")),
        measured=any(result.endswith(f".{name}.json") for result in results),
    )


def _results_of(folder: Path) -> list[str]:
    try:
        return [path.name for path in (folder / "results").iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _a(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _perhaps(kind: type[T], value: Any) -> T | None:
    return None if value is None else _a(kind, value)


def _megabytes(value: Any) -> float | None:
    return float(value) if type(value) is int else _perhaps(float, value)


def _list(value: Any) -> list[Any]:
    return [] if value is None else _a(list, value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_a(str, one) for one in _list(value))
