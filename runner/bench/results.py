"""What a benchmark found: a typed, frozen record that is written as JSON and read by tables, READMEs and reports."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field, ValidationError

from runner.errors import InvalidRecipe, Place, Problem
from runner.recipe.config import Model
from runner.recipe.info import Gate


class Side(Model):
    """One side's figure."""

    value: float
    samples: tuple[float, ...] = Field((), description="one figure a round, or what the value was made of")


class Ratio(Model):
    """Optimised over baseline."""

    value: float = Field(description="median of the rounds' ratios")
    low: float
    high: float

    @classmethod
    def of_rounds(cls, baseline: tuple[float, ...], optimised: tuple[float, ...]) -> Ratio:
        """Returns the ratio of figures that were measured in turn, round by round."""
        ratios = [ours / theirs for theirs, ours in zip(baseline, optimised, strict=True)]
        return cls(value=median(ratios), low=min(ratios), high=max(ratios))


class Peer(Model):
    """The figure of the original model in another form, measured in the same turns."""

    form: str = Field(description="such as PyTorch fp16, compiled")
    value: float
    samples: tuple[float, ...] = ()
    ratio: Ratio = Field(description="optimised over this")


class Row(Model):
    """One figure of both sides."""

    name: str
    unit: str
    higher_is_better: bool
    about: str
    baseline: Side | None = Field(None, description="None where the figure is itself a comparison with the baseline")
    optimised: Side
    ratio: Ratio | None = None
    peers: tuple[Peer, ...] = ()


class Cell(Model):
    """The speed at one size of the input: how many inputs at once, and how long each is."""

    figure: Literal["prefill", "decode"] | None = Field(None, description="of text generation; None where a call is one thing")
    batch: int
    length: int | None = Field(None, description="tokens an input; None where it has no length")
    new_tokens: int | None = Field(None, description="written behind a prompt; in files that do not say so it was 16")
    unit: str = Field(description="of both sides' values: inputs a second, such as images/s; of all rows together")
    baseline: Side
    optimised: Side
    ratio: Ratio

    def latency(self, side: Side) -> float:
        """Returns the milliseconds that a call took."""
        return self.batch / side.value * 1e3


class Verdict(Model):
    """A gate of the recipe, and whether it is met."""

    metric: str
    bar: str = Field(description="as info.yml says it: '<= 1.05x', '>= 0.99'")
    value: float | None = Field(None, description="what was held against the bar; None where it was not measured")
    met: bool

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.4g}{'x' if self.bar.endswith('x') else ''}"
        return f"{self.metric} {self.bar}: {found}"


class Card(Model):
    """The GPU that ran the optimised model."""

    name: str
    memory_bytes: int
    driver: str
    cuda: str | None = Field(None, description="the newest CUDA that the driver serves")


class Environment(Model):
    """The machine and the software that measured. Names no host and no user."""

    cpu: str
    cores: int = Field(description="cores that the process may use")
    flags: tuple[str, ...] = Field(description="instruction sets that decide the speed of these models")
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    revision: str | None = Field(
        description="git revision of the project, with -dirty behind it where code or recipes differed from it; None where"
        " neither git nor RECIPE_REVISION tells"
    )
    busy: float = Field(description="share of the machine that other processes used during the rounds, 0 to 1")
    card: Card | None = None


class Placement(Model):
    """Which execution provider ran what, from a profile of ONNX Runtime."""

    nodes: dict[str, int] = Field(description="by provider")
    seconds: dict[str, float] = Field(description="that the host spent in the nodes' calls of one use when warm, by provider")
    operators: dict[str, float] = Field(description="the same seconds by operator, the slowest first")
    fell_back: dict[str, int] = Field(description="operators that the asked provider did not run, and how many nodes of them")

    def share_of_nodes(self, provider: str) -> float:
        """Returns the share of the nodes that a provider ran, 0 to 1."""
        return self.nodes.get(provider, 0) / max(1, sum(self.nodes.values()))

    def share_of_time(self, provider: str) -> float:
        """Returns the share of the time that went to a provider's nodes, 0 to 1."""
        total = sum(self.seconds.values())
        return self.seconds.get(provider, 0.0) / total if total else 0.0


class Results(Model):
    """A benchmark of one variant of a recipe on one machine."""

    version: Literal[1] = 1
    recipe: str
    variant: str | None
    task: str | None
    target: str
    threads: int
    rounds: int
    smoke: bool = False
    model: str | None = Field(description="the source model's id")
    source_digest: str | None
    fingerprint: str | None = Field(description="of the optimised model, as in its receipt")
    passes: dict[str, int] | None = Field(None, description="that made the optimised model, and their versions; None: unknown")
    settings: str | None = Field(None, description="sha256 of the passes' options, see runner.passes.record; None: unknown")
    passes_from: Literal["run", "fingerprint"] = Field(
        "run",
        description="who tells these: the run, or a state of the project whose plan was found to give the same fingerprint",
    )
    date: str
    command: str
    baseline: str = Field("PyTorch fp32", description="how the original ran")
    weights: Literal["real", "random"] = Field(
        "real", description="random ones have the model's shapes: they tell of speed and memory, and nothing of quality"
    )
    host: str = Field(description="label of the machine")
    placement: Placement | None = Field(None, description="which provider ran the nodes; None for the CPU")
    environment: Environment
    rows: tuple[Row, ...]
    grid: tuple[Cell, ...] = Field((), description="speed by batch and length, where the model takes several")
    gates: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row | None:
        """Returns the row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def gate(self, name: str) -> Verdict | None:
        """Returns the verdict on that figure, or None."""
        return next((gate for gate in self.gates if gate.metric == name), None)

    @property
    def file_name(self) -> str:
        """Returns ``host.variant.json``."""
        return f"{self.host}.{self.variant or 'default'}.json"

    def write(self, path: Path) -> None:
        """Writes the results as JSON; the folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def judge(gate: Gate, rows: tuple[Row, ...]) -> Verdict:
    """Returns whether a gate is met: a relative bar is held against the ratio, any other against the optimised value."""
    row = next((row for row in rows if row.name == gate.metric), None)
    ratio = row.ratio.value if row and row.ratio else None
    value = ratio if gate.relative else row.optimised.value if row else None
    bar = str(gate).removeprefix(gate.metric).strip()
    met = value is not None and gate.met(value, 1.0 if gate.relative else None)
    return Verdict(metric=gate.metric, bar=bar, value=value, met=met)


def read_results(path: Path) -> Results:
    """Reads a results file.

    Raises:
        InvalidRecipe: it is not one.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        cause = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error.strerror)
        raise InvalidRecipe(
            Problem("bad-results", f"not a results file: {cause}", Place(str(path)), "measure again with 'recipe bench'")
        ) from None


def host_label(cpu: str, cores: int, card: Card | None = None) -> str:
    """Returns a short label for a machine, such as ``amd-epyc-2c``; of its card, where that ran the model."""
    if card is not None:
        return re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\d+-core", " ", cpu.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown-cpu"
    return f"{slug}-{cores}c"


def results_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a results file."""
    return Results.model_json_schema()
