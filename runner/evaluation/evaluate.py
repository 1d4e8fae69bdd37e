"""Serves the evaluators section of a configuration: its metrics on the output model, and whether its goals are reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import RecipeError, RunFailed
from runner.evaluation.check import LANGUAGE_MODEL, TEXT_EMBEDDING, kind_of, parameters_of
from runner.evaluation.goals import missed, needs_baseline
from runner.evaluation.measurement import DEFAULT_STATISTIC, Measurement
from runner.evaluation.metric import Metric
from runner.models.handle import ModelHandle
from runner.models.session import raised_by_runtime
from runner.recipe.config import Evaluator, RunConfig, SubMetric
from runner.targets.target import Target

VERSION = 2  # raised when the same evaluator starts to give other figures
SOURCE_PREFIX = "source."


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
        metrics: of the output model, named `metric-statistic`; the source model's bear the prefix ``source.``.
        missed: one sentence for each goal that is not reached.
        notes: what could not be measured, and why.
    """

    metrics: tuple[Metric, ...]
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the evaluation as plain data."""
        metrics = [metric.to_json() for metric in self.metrics]
        return {"metrics": metrics, "missed": list(self.missed), "notes": list(self.notes)}


def evaluate(
    model: ModelHandle,
    source: ModelHandle,
    config: RunConfig,
    folder: Path,
    threads: int,
    smoke: bool,
    script_allowed: bool = True,
    made_for: Target | None = None,
) -> Evaluation:
    """Measures the run's evaluator on the output model, and on the source model where it is asked for or a goal needs it.

    Time is measured in fresh processes with one model each. A language model's latency is that of the first token behind a
    prompt of 32 tokens. In a smoke run, where the target's device may be absent, the CPU stands in for it; a model that does
    not run there has no figures.

    Args:
        model: the output.
        source: the model that the run started from.
        config: the configuration; `runner.evaluation.check.check_evaluator` has found nothing wrong with it.
        folder: folder of the configuration.
        threads: threads of every session.
        smoke: tiny models and made-up data: a few repeats, and no goal is judged.
        script_allowed: whether a script of the data or of a metric may run.
        made_for: the target of the output; the configuration's by default.

    Raises:
        RecipeError: data is missing, or a model does not load or run.
    """
    evaluator = config.evaluators[config.evaluator or ""]
    measurement = Measurement(config, folder, threads, smoke, script_allowed, made_for)
    try:
        if kind_of(evaluator) is None:
            return _metric_list(evaluator, measurement, model, source)
        found = _tasks(evaluator, measurement, model)
        if config.evaluate_input_model:
            found += [_of_source(metric) for metric in _tasks(evaluator, measurement, source)]
        return Evaluation(tuple(found))
    except Exception as error:
        stopped = type(error) in (RunFailed, RecipeError)  # the latter is what a measuring process tells of its own errors
        if not measurement.device_is_absent or not (stopped or raised_by_runtime(error)):
            raise
        told = error.problems[0].cause if isinstance(error, RecipeError) else str(error).splitlines()[0]
        note = f"{measurement.target.name} is not on this machine, and the CPU does not measure its model: {told}"
        return Evaluation((), notes=(note,))


def _of_source(metric: Metric) -> Metric:
    return replace(metric, name=f"{SOURCE_PREFIX}{metric.name}")


def _metric_list(evaluator: Evaluator, measurement: Measurement, model: ModelHandle, source: ModelHandle) -> Evaluation:
    found: list[Metric] = []
    failures: list[str] = []
    for metric in evaluator.metrics:
        subs = metric.sub_types or [SubMetric(name=DEFAULT_STATISTIC[metric.type])]
        relative = any(sub.goal is not None and needs_baseline(sub.goal) for sub in subs)
        ours = measurement.of(metric, subs, model)
        wanted = relative or measurement.config.evaluate_input_model
        theirs = measurement.of(metric, subs, source) if wanted else [None] * len(subs)
        for sub, one, other in zip(subs, ours, theirs, strict=True):
            if one is None:
                continue
            found.append(one)
            if other is not None:
                found.append(_of_source(other))
            text = missed(sub.goal, one, other) if sub.goal is not None and not measurement.smoke else None
            failures += [text] if text else []
    return Evaluation(tuple(found), tuple(failures))


def _tasks(evaluator: Evaluator, measurement: Measurement, model: ModelHandle) -> list[Metric]:
    """Returns the figures of an evaluator that runs benchmark tasks, or that a script brings."""
    asked: Mapping[str, Any] = parameters_of(evaluator)
    where = (measurement.folder, measurement.threads, measurement.provider)
    kind = kind_of(evaluator)
    if kind == LANGUAGE_MODEL:
        from runner.evaluation.language_tasks import language_tasks

        return language_tasks(model, asked, *where, measurement.smoke, measurement.script_allowed)
    if kind == TEXT_EMBEDDING:
        from runner.evaluation.text_embedding import text_embedding_tasks

        return text_embedding_tasks(model, asked, *where, measurement.smoke)
    from runner.evaluation.custom import script_evaluator

    return script_evaluator(
        str(evaluator.type), asked, model, measurement.provider, measurement.folder, measurement.script_allowed
    )
