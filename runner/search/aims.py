"""What a search is for: figures to make small or great, and goals that a model must reach."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.bench.scenarios import FIGURES
from runner.errors import InvalidRecipe, Problem, UsageError, did_you_mean
from runner.evaluation.goals import limit
from runner.recipe.config import Goal as MetricGoal
from runner.recipe.config import RunConfig
from runner.recipe.info import Gate

# Of every model, without a benchmark.
FREE = {"size": ("bytes", False), "parity": ("", True)}
DECODE_LATENCY = "decode_latency"
_ALIASES = {"size_on_disk": "size", "decode_speed": "decode", "first_token": "ttft", "memory": "peak_rss", "speed": "decode"}
SPEEDS = ("decode", "rtf", "image_time", "latency", "throughput", "ttft")
# No model can be beyond these; a figure that compares two models has no value of the original to be a multiple of.
_MOST = dict.fromkeys(("cosine", "cosine_min", "parity", "spearman", "pearson", "accuracy", "agreement"), 1.0)
_LEAST = {"perplexity": 1.0}
_OF_BOTH = ("cosine", "cosine_min", "parity", "agreement", "psnr")
QUALITIES = ("perplexity", "wer", "accuracy", "spearman", "psnr", "cosine", "agreement", "parity")


@dataclass(frozen=True)
class Figure:
    """A measured figure of a model.

    Attributes:
        value: in `unit`.
        unit: empty for a pure number.
        higher_is_better: direction.
        baseline: the source model's value; None where there is none.
        ratio: value over baseline as it was measured, side by side; None where it was not.
    """

    value: float
    unit: str
    higher_is_better: bool
    baseline: float | None = None
    ratio: float | None = None


Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Goal:
    """What a figure must reach.

    Attributes:
        metric: name of the figure.
        gate: a bar as gates of info.yml say it; or
        goal: a goal of an evaluator's metric.
    """

    metric: str
    gate: Gate | None = None
    goal: MetricGoal | None = None

    def __str__(self) -> str:
        return str(self.gate) if self.gate else f"{self.metric}: {self.goal.type} {self.goal.value:g}" if self.goal else ""

    def shortfall(self, figures: Figures) -> float:
        """Returns by which part of the bar a model misses the goal; at most 0 where it reaches it, 1e9 where nothing tells."""
        figure = figures.get(self.metric)
        if figure is None:
            return 1e9
        value, at_most = figure.value, not figure.higher_is_better
        if self.gate is not None:
            at_most, bar = self.gate.at_most, self.gate.bar
            if self.gate.relative:
                if figure.ratio is None and not figure.baseline:
                    return 1e9
                value = figure.ratio if figure.ratio is not None else figure.value / (figure.baseline or 1.0)
        elif self.goal is not None:
            try:
                bar = limit(self.goal, figure.higher_is_better, figure.baseline)
            except ValueError:
                return 1e9
        over = value - bar if at_most else bar - value
        return over / (abs(bar) or 1.0)


@dataclass(frozen=True)
class Objective:
    """A figure to make as small, or as great, as it gets."""

    metric: str
    maximise: bool

    def __str__(self) -> str:
        return f"{'maximise' if self.maximise else 'minimise'} {self.metric}"


@dataclass(frozen=True)
class Aims:
    """What a search is for: the first objective decides among points that meet all goals, the next where it is equal."""

    objectives: tuple[Objective, ...]
    goals: tuple[Goal, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Returns the names of all figures that are needed."""
        return tuple(dict.fromkeys([*(one.metric for one in self.objectives), *(one.metric for one in self.goals)]))

    def shortfall(self, figures: Figures) -> float:
        """Returns the sum of what is missed; 0 where every goal is reached."""
        return sum(max(0.0, goal.shortfall(figures)) for goal in self.goals)

    def missed(self, figures: Figures) -> tuple[str, ...]:
        """Returns the goals that are not reached, as text."""
        return tuple(str(goal) for goal in self.goals if goal.shortfall(figures) > 0)

    def rank(self, figures: Figures) -> tuple[float, ...]:
        """Returns a key that sorts the better model first: goals, then all costs one by one."""
        return (self.shortfall(figures), *self.all_costs(figures))

    def costs(self, figures: Figures) -> tuple[float, ...]:
        """Returns the objectives' values, turned so that less is better; infinite where one was not measured."""
        told = []
        for one in self.objectives:
            figure = figures.get(one.metric)
            told.append(float("inf") if figure is None else -figure.value if one.maximise else figure.value)
        return tuple(told)

    def all_costs(self, figures: Figures) -> tuple[float, ...]:
        """Returns the costs of the objectives, and behind them those of further figures that goals are about."""
        told = list(self.costs(figures))
        objectives = {one.metric for one in self.objectives}
        for name in dict.fromkeys(goal.metric for goal in self.goals):
            figure = figures.get(name)
            if name not in objectives:
                told.append(float("inf") if figure is None else -figure.value if figure.higher_is_better else figure.value)
        return tuple(told)


def known_figures(config: RunConfig) -> dict[str, bool | None]:
    """Returns the figures that a search of a configuration can name, and whether more is better where that is known."""
    own = {name: higher for name, higher, _, _ in evaluated_figures(config)}
    named = {name: figure.higher_is_better for name, figure in FIGURES.items()}
    return {**named, **{name: higher for name, (_, higher) in FREE.items()}, DECODE_LATENCY: False, **own}


def aims_of(
    config: RunConfig,
    gates: Mapping[str, str],
    goals: Iterable[str],
    minimise: Sequence[str],
    maximise: Sequence[str],
    task: str | None,
) -> Aims:
    """Returns what a search is for.

    What is typed wins; else the evaluator's metrics by their priority; else the recipe's gates and its task's speed.

    Args:
        config: the configuration.
        gates: the recipe's gates: figure to bar.
        goals: texts such as ``perplexity <= 1.03x``.
        minimise: figures to make small.
        maximise: figures to make great.
        task: the model's; None where only its files tell.

    Raises:
        UsageError: a figure or a bar that cannot be read, that is asked for the wrong way round, or that no model can reach.
    """
    known = known_figures(config)
    typed_goals = tuple(_goal(text, known) for text in goals)
    objectives = [_objective(name, False, known) for name in minimise] + [_objective(name, True, known) for name in maximise]
    evaluated = sorted(evaluated_figures(config), key=lambda one: one[2] if one[2] > 0 else 1_000)
    if not typed_goals:
        typed_goals = tuple(Goal(name, goal=goal) for name, _, _, goal in evaluated if goal is not None)
    if not typed_goals and not evaluated:
        typed_goals = tuple(Goal(name, Gate.parse(name, bar)) for name, bar in gates.items())
    if not objectives and evaluated:
        chosen = [one for one in evaluated if one[2] > 0] or evaluated[:1]
        objectives = [Objective(name, bool(higher)) for name, higher, _, _ in chosen]
    if not objectives:
        speed = _speed_of(task)
        objectives = [Objective(speed, FIGURES[speed].higher_is_better)]
    return Aims(tuple(objectives), typed_goals)


def _speed_of(task: str | None) -> str:
    known = {"automatic-speech-recognition": "rtf", "text-to-image": "image_time"}
    return "decode" if (task or "").startswith("text-generation") else known.get(task or "", "latency")


def evaluated_figures(config: RunConfig) -> list[tuple[str, bool | None, int, MetricGoal | None]]:
    """Returns the evaluator's figures: name, whether more is better, priority, goal."""
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return []
    found: list[tuple[str, bool | None, int, MetricGoal | None]] = []
    for metric in evaluator.metrics:
        for sub in metric.sub_types:
            higher = sub.higher_is_better
            if higher is None:
                higher = metric.type in ("accuracy", "throughput") and sub.name not in ("perplexity", "wer")
            found.append((f"{metric.name}-{sub.name}", higher, sub.priority, sub.goal))
    return found


def _named(name: str, known: Iterable[str]) -> str:
    name = name.strip()
    names = list(known)
    if name in names:
        return name
    spelt = name.lower().replace("-", "_")
    if spelt in names or spelt in _ALIASES:
        return _ALIASES.get(spelt, spelt)
    raise UsageError("unknown-figure", f"there is no figure '{name}' to measure", did_you_mean(name, names))


def _goal(text: str, known: Mapping[str, bool | None]) -> Goal:
    found = re.fullmatch(r"\s*([\w.\- ]+?)\s*((?:<=|>=|[<>=]).*)", text)
    if found is None:
        raise UsageError("bad-goal", f"--goal '{text}' is not a figure and its bar", "for example 'perplexity <= 1.03x'")
    name = _named(found[1], known)
    try:
        gate = Gate.parse(name, found[2])
    except ValueError:
        raise UsageError(
            "bad-goal", f"--goal '{text}': '{found[2].strip()}' is no bar", "for example '<= 1.03x' of the source, or '>= 0.99'"
        ) from None
    _refuse_unreachable(text, gate)
    return Goal(name, gate)


def _refuse_unreachable(text: str, gate: Gate) -> None:
    """Refuses a bar that no model can reach."""
    most, least, name = _MOST.get(gate.metric), _LEAST.get(gate.metric), gate.metric
    cause = remedy = ""
    if gate.relative and name in _OF_BOTH:
        cause, remedy = f"{name} is itself a comparison with the original model", "leave out the x"
    elif gate.relative:
        return
    elif not gate.at_most and most is not None and gate.bar > most:
        cause, remedy = f"{name} is {most:g} at most", f"a bar of {most:g} or below"
    elif gate.at_most and least is not None and gate.bar < least:
        cause, remedy = f"{name} is {least:g} at least", f"a bar of {least:g} or above"
    if cause:
        raise UsageError("unreachable-goal", f"--goal '{text}' can never be met: {cause}", remedy)


def _objective(name: str, maximise: bool, known: Mapping[str, bool | None]) -> Objective:
    metric = _named(name, known)
    higher = known[metric]
    if higher is not None and higher != maximise:
        other = "; the time a token takes is decode_latency" if metric == "decode" else ""
        raise UsageError(
            "wrong-direction",
            f"--{'maximize' if maximise else 'minimize'} {metric}: {'more' if higher else 'less'} of it is better",
            f"--{'maximize' if higher else 'minimize'} {metric}{other}",
        )
    return Objective(metric, maximise)


def check_measurable(aims: Aims, figures: Figures) -> None:
    """Refuses aims that a model of this kind has no figures for, after the first one was measured.

    Raises:
        InvalidRecipe: with what is missing.
    """
    absent = [name for name in aims.metrics if name not in figures]
    if absent:
        raise InvalidRecipe(
            *(
                Problem("figure-not-measured", f"this model has no figure '{name}'", remedy=f"it has: {', '.join(figures)}")
                for name in absent
            )
        )


def figure_from_json(data: Mapping[str, Any]) -> Figure:
    """Returns the figure that `dataclasses.asdict` gave."""
    return Figure(**data)
