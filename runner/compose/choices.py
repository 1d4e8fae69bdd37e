"""The ways to optimise a model for a target, and their order by what matters most: size, speed or quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runner.catalog.discover import Entry
from runner.errors import UsageError, did_you_mean
from runner.recipe.info import Gate, Variant
from runner.recipe.quantities import short_size
from runner.targets.target import Target, target_name
from runner.templating.clone import Clone
from runner.templating.kinds import Kind, precision_of, scheme_for, schemes
from runner.templating.results import read_results_files

Trade = Literal["size", "speed", "quality"]
TRADES: tuple[Trade, ...] = ("size", "speed", "quality")

_BITS = {"int4": 4, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_SPEEDS = ("decode", "latency", "throughput", "rtf", "step")  # the first that was measured counts
# What counts as kept: a multiple of the original's perplexity, an error added to its own, or a likeness.
_KEPT: Mapping[str, float] = {"perplexity": 1.02, "wer": 0.01, "cosine": 0.995, "agreement": 0.99, "psnr": 35.0}


@dataclass(frozen=True)
class Measured:
    """What a recipe's results say of a variant.

    Attributes:
        speed: times faster than the original model; None where it was not measured.
        size: bytes of the model.
        quality: metric to its figure: a multiple for perplexity, an addition for wer, a likeness for the others.
    """

    speed: float | None
    size: float | None
    quality: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """One way to optimise the model.

    Attributes:
        variant: what info.yml says of it.
        scheme: precision and what refines it, such as ``int8-static``.
        of_recipe: the catalogue's recipe has this variant.
        measured: figures of the recipe's results; None without any.
    """

    variant: Variant
    scheme: str
    of_recipe: bool
    measured: Measured | None = None

    @property
    def precision(self) -> str:
        """Returns the precision of its weights."""
        return self.variant.precision or precision_of(self.scheme)

    @property
    def keeps(self) -> bool:
        """Returns whether it keeps the model's quality: as measured, else by the bar that it must reach."""
        figures = dict(self.measured.quality) if self.measured else {}
        if not figures:
            figures = {metric: Gate.parse(metric, bar).bar for metric, bar in self.variant.gates.items()}
        told = [_keeps(metric, value) for metric, value in figures.items() if metric in _KEPT]
        return bool(told) and all(told)

    def why_measured(self) -> str:
        """Returns what was measured of it, in words."""
        if self.measured is None:
            return "not measured yet"
        speed = f"{self.measured.speed:.2f}x as fast" if self.measured.speed else ""
        size = short_size(int(self.measured.size)) if self.measured.size else ""
        kept = [f"{name} {value:.4g}{'x' if name == 'perplexity' else ''}" for name, value in self.measured.quality.items()]
        return ", ".join(part for part in (speed, size, *kept) if part)


def _keeps(metric: str, value: float) -> bool:
    bar = _KEPT[metric]
    return value <= bar if metric in ("perplexity", "wer") else value >= bar


def of_recipe(entry: Entry, kind: Kind | None, target: Target, clone: Clone) -> list[Choice]:
    """Returns the variants of a recipe for a target in its order, then what further pipelines of its kind could make."""
    results = {one["variant"]: one for one in read_results_files(entry.folder)}
    found = [
        Choice(variant, scheme_of(variant, target), True, _measured(results.get(variant.name)))
        for variant in entry.info.recipes
        if variant.ep == target.provider
    ]
    there = {choice.scheme for choice in found}
    further = of_kind(kind, entry.info.model.task, entry.info.arch, target, clone) if kind else []
    return [*found, *(choice for choice in further if choice.scheme not in there)]


def of_kind(kind: Kind, task: str, architecture: str, target: Target, clone: Clone) -> list[Choice]:
    """Returns what the pipelines of a kind make for a target; the usual scheme of each precision before its refinements."""
    served = schemes(kind, target, clone.pipelines)
    usual = [scheme_for(precision, kind, architecture, target, clone.pipelines) for precision in _BITS]
    order = dict.fromkeys([*(scheme for scheme in usual if scheme), *served])
    return [Choice(_variant(kind, task, scheme, served[scheme], target), scheme, False) for scheme in order]


def _variant(kind: Kind, task: str, scheme: str, pipeline: str, target: Target) -> Variant:
    gate = kind.gate(task, scheme, target)
    return Variant(
        name=f"{target_name(target.provider)}-{scheme}",
        file="olive_config.json",
        device=target.device,
        ep=target.provider,
        precision=precision_of(scheme),
        pipeline=pipeline,
        gates=dict([gate]) if gate else {},
    )


def scheme_of(variant: Variant, target: Target) -> str:
    """Returns a variant's scheme: its name without the target."""
    return variant.name.removeprefix(f"{target_name(target.provider)}-")


def _measured(results: Mapping[str, Any] | None) -> Measured | None:
    if results is None:
        return None
    rows = {row["name"]: row for row in results["rows"]}
    speed = next((rows[name] for name in _SPEEDS if name in rows and rows[name].get("ratio")), None)
    times = None
    if speed is not None:
        ratio = float(speed["ratio"]["value"])
        times = ratio if speed["higher_is_better"] else 1 / ratio
    size = rows["size"]["optimised"]["value"] if "size" in rows else None
    quality = {}
    for metric in _KEPT:
        if metric in rows and rows[metric]["optimised"]["value"] is not None:
            value = float(rows[metric]["optimised"]["value"])
            baseline = (rows[metric].get("baseline") or {}).get("value")
            if metric == "perplexity" and baseline:
                value /= float(baseline)
            elif metric == "wer" and baseline is not None:
                value -= float(baseline)
            quality[metric] = value
    return Measured(times, size, quality)


def ordered(choices: Sequence[Choice], precision: str | None, trade: Trade | None, target: Target) -> list[Choice]:
    """Returns the choices of a precision, best first; of all precisions where none was asked for.

    Without a trade their own order holds: the recipe's default first, else the usual scheme.

    Raises:
        UsageError: none has that precision.
    """
    wanted = [one for one in choices if precision in (None, one.precision, one.scheme)]
    if not wanted:
        known = sorted({one.scheme for one in choices} | {one.precision for one in choices})
        remedy = f"there are: {', '.join(known) or 'none'}"
        near = did_you_mean(str(precision), known)
        raise UsageError(
            "unknown-precision",
            f"nothing makes {precision} of this model on {target.name}",
            f"{near} {remedy}" if near.startswith("did") else remedy,
        )
    if trade is None:
        return wanted
    return sorted(wanted, key=lambda one: _rank(one, trade))


def _rank(choice: Choice, trade: Trade) -> tuple[float, ...]:
    """Returns what is least for the best; measured ones come before guesses where they can be compared."""
    bits, measured = float(_BITS.get(choice.precision, 32)), choice.measured
    calibrated = "gptq" in choice.scheme or "static" in choice.scheme
    if trade == "speed":
        return (0, -measured.speed) if measured and measured.speed else (1, bits, calibrated)
    if trade == "size":
        return (bits, measured.size if measured and measured.size else float("inf"), calibrated)
    return (not choice.keeps, bits if choice.keeps else -bits, not calibrated)
