"""Serves the evaluators section of a configuration: its metrics on the output model, and whether its goals are reached."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.errors import DataUnavailable, Problem, did_you_mean
from runner.evaluation.accuracy import ACCURACY_STATISTICS, accuracy, collect, predictions
from runner.evaluation.goals import missed, needs_baseline
from runner.evaluation.latency import LATENCY_STATISTICS, latency, throughput
from runner.evaluation.metric import Metric
from runner.evaluation.size import size_on_disk
from runner.evaluation.subject_process import SubjectProcess
from runner.models.handle import ModelHandle
from runner.recipe.config import DataConfig, MetricConfig, RunConfig, SubMetric
from runner.targets.target import target_of

VERSION = 1  # raised when the same evaluator starts to give other figures
WARMUP, REPEATS = 10, 20
SMOKE_WARMUP, SMOKE_REPEATS = 1, 3
PROMPT_TOKENS = 32
SOURCE_PREFIX = "source."
_STATISTICS: dict[str, Sequence[str]] = {
    "latency": tuple(LATENCY_STATISTICS),
    "throughput": tuple(LATENCY_STATISTICS),
    "accuracy": tuple(ACCURACY_STATISTICS),
    "size_on_disk": ("bytes",),
}
_DEFAULT_STATISTIC = {"latency": "avg", "throughput": "avg", "accuracy": "accuracy_score", "size_on_disk": "bytes"}
_LATER = {
    "LMEvaluator": "perplexity is measured by 'recipe bench', and accuracy by an evaluator with metrics",
    "MTEBEvaluator": "cosine retention of embeddings is measured by 'recipe bench'",
}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
        metrics: of the output model, named `metric-statistic`; the source model's bear the prefix ``source.``.
        missed: one sentence for each goal that is not reached.
    """

    metrics: tuple[Metric, ...]
    missed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the evaluation as plain data."""
        return {"metrics": [metric.to_json() for metric in self.metrics], "missed": list(self.missed)}


def check_evaluator(config: RunConfig) -> list[Problem]:
    """Returns what stands in the way of the run's evaluator, before any work. Imports no ML library."""
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return []
    if evaluator.type is not None and evaluator.type.lower() not in ("oliveevaluator", "onnxevaluator"):
        known = next((name for name in _LATER if name.lower() == evaluator.type.lower()), None)
        remedy = f"take the evaluator out; {_LATER[known]}" if known else did_you_mean(evaluator.type, _LATER)
        cause = "is not served yet" if known else "does not exist"
        return [
            Problem("evaluator-not-served", f"evaluator '{config.evaluator}': type {evaluator.type} {cause}", remedy=remedy)
        ]
    problems = []
    for metric in evaluator.metrics:
        problems += _check_metric(metric)
    return problems


def _check_metric(metric: MetricConfig) -> list[Problem]:
    if metric.type == "custom":
        return [
            Problem(
                "metric-not-served",
                f"metric '{metric.name}': metrics of type custom are not served",
                remedy="use latency, throughput, accuracy (with a post_process component of your own) or size_on_disk",
            )
        ]
    known = _STATISTICS[metric.type]
    problems = [
        Problem(
            "unknown-sub-type",
            f"metric '{metric.name}': {metric.type} has no '{sub.name}'",
            remedy=did_you_mean(sub.name, known),
        )
        for sub in metric.sub_types
        if sub.name not in known
    ]
    if metric.type == "accuracy" and metric.data_config is None:
        problems.append(
            Problem("missing-key", f"metric '{metric.name}': accuracy needs labelled data", remedy="name a data_config")
        )
    return problems


def evaluate(
    model: ModelHandle,
    source: ModelHandle,
    config: RunConfig,
    folder: Path,
    threads: int,
    smoke: bool,
    script_allowed: bool = True,
) -> Evaluation:
    """Measures the run's evaluator on the output model, and on the source model where it is asked for or a goal needs it.

    Time is measured in fresh processes with one model each. A language model's latency is that of the first token behind a
    prompt of 32 tokens.

    Args:
        model: the output.
        source: the model that the run started from.
        config: the configuration; `check_evaluator` has found nothing wrong with it.
        folder: folder of the configuration.
        threads: threads of every session.
        smoke: tiny models and made-up data: a few repeats, and no goal is judged.
        script_allowed: whether the data's user script may run.

    Raises:
        RecipeError: data is missing, or a model does not load or run.
    """
    evaluator = config.evaluators[config.evaluator or ""]
    measurement = _Measurement(config, folder, threads, smoke, script_allowed)
    found: list[Metric] = []
    failures: list[str] = []
    for metric in evaluator.metrics:
        subs = metric.sub_types or [SubMetric(name=_DEFAULT_STATISTIC[metric.type])]
        relative = any(sub.goal is not None and needs_baseline(sub.goal) for sub in subs)
        ours = measurement.of(metric, subs, model)
        wanted = relative or config.evaluate_input_model
        theirs = measurement.of(metric, subs, source) if wanted else [None] * len(subs)
        for sub, one, other in zip(subs, ours, theirs, strict=True):
            if one is None:
                continue
            found.append(one)
            if other is not None:
                found.append(replace(other, name=f"{SOURCE_PREFIX}{other.name}"))
            text = missed(sub.goal, one, other) if sub.goal is not None and not smoke else None
            failures += [text] if text else []
    return Evaluation(tuple(found), tuple(failures))


@dataclass(frozen=True)
class _Measurement:
    """How metrics are taken in this run."""

    config: RunConfig
    folder: Path
    threads: int
    smoke: bool
    script_allowed: bool

    def of(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> Sequence[Metric | None]:
        """Returns one metric a sub-type, named `metric-statistic`; None where made-up data cannot tell it."""
        take: dict[str, Callable[..., Sequence[Metric | None]]] = {
            "latency": self._latency,
            "throughput": self._throughput,
            "accuracy": self._accuracy,
            "size_on_disk": self._size,
        }
        return [
            one
            and replace(
                one,
                name=f"{metric.name}-{sub.name}",
                higher_is_better=one.higher_is_better if sub.higher_is_better is None else sub.higher_is_better,
            )
            for sub, one in zip(subs, take[metric.type](metric, subs, model), strict=True)
        ]

    def _size(self, _: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> list[Metric]:
        return [size_on_disk(model.folder)] * len(subs)

    def _latency(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> list[Metric]:
        seconds, _, note = self._timed(metric, subs, model)
        return [replace(latency(seconds, sub.name), note=note) for sub in subs]

    def _throughput(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> list[Metric]:
        seconds, batch, note = self._timed(metric, subs, model)
        return [replace(throughput(seconds, batch, sub.name), note=note) for sub in subs]

    def _timed(
        self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle
    ) -> tuple[tuple[float, ...], int, str | None]:
        """Returns (seconds a call, inputs a call, note), measured in a process of its own."""
        asked = {**(metric.user_config or {}), **next((sub.metric_config for sub in subs if sub.metric_config), {})}
        warmup = int(asked.get("warmup_num", SMOKE_WARMUP if self.smoke else WARMUP))
        repeats = int(asked.get("repeat_test_num", SMOKE_REPEATS if self.smoke else REPEATS))
        provider = target_of(self.config.system(self.config.target)).provider
        with _scratch() as scratch, SubjectProcess(model, "measured") as subject:
            if model.kind == "genai":
                subject.load(self.threads, provider, generates=True)
                prompt = _prompt(model)
                taken = [subject.ask("generate", prompt=prompt, new_tokens=1)["seconds"][0] for _ in range(warmup + repeats)]
                return tuple(taken[warmup:]), 1, f"prompt of {len(prompt)} tokens to the first new one"
            feed, batch, note = self._feed(metric, model, scratch)
            subject.load(self.threads, provider, generates=False)
            pause = float(asked.get("sleep_num", 0))
            answer = subject.ask("time", feed=str(feed), warmup=warmup, repeats=repeats, pause=pause)
            return tuple(answer["seconds"]), batch, note

    def _feed(self, metric: MetricConfig, model: ModelHandle, scratch: Path) -> tuple[Path, int, str | None]:
        """Writes the first batch of the metric's data, or made-up values; returns (file, batch size, note)."""
        import numpy as np

        from runner.models.inputs import graph_inputs, made_up, source_inputs

        note = None
        if metric.data_config is not None:
            inputs = next(iter(self._data(metric, model)), None)
            if inputs is None:
                raise DataUnavailable(f"metric '{metric.name}': its data is empty")
        else:
            wanted = graph_inputs(model.path) if model.kind == "onnx" else source_inputs(model)
            inputs = made_up(wanted, model.folder)
            shapes = " and ".join("x".join(map(str, array.shape)) for array in inputs.values() if array.size)
            note = f"made-up inputs: {shapes}"
        path = scratch / "feed.npz"
        np.savez(path, **inputs)
        batch = max((array.shape[0] for array in inputs.values() if array.ndim), default=1)
        return path, batch, note

    def _accuracy(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> Sequence[Metric | None]:
        from runner.evaluation.forward import open_forward, outputs_of

        provider = target_of(self.config.system(self.config.target)).provider
        data = self._data(metric, model)
        forward = open_forward(model, self.threads, provider)
        answer = partial(outputs_of, forward)
        if data.synthetic:
            predictions(answer(next(iter(data))), data.post_process)
            return [None] * len(subs)
        labels, chosen, scores = collect(data.labelled(), answer, data.post_process)
        return [accuracy(sub.name, labels, chosen, scores) for sub in subs]

    def _data(self, metric: MetricConfig, model: ModelHandle) -> Any:
        from runner.data.batches import open_data

        named = metric.data_config
        config = self.config.data_config(named) if isinstance(named, str) else named
        if not isinstance(config, DataConfig):
            raise DataUnavailable(f"metric '{metric.name}': there is no data config '{named}'")
        return open_data(config, folder=self.folder, model=model, smoke=self.smoke, script_allowed=self.script_allowed)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="recipe-evaluation-") as folder:
        yield Path(folder)


def _prompt(model: ModelHandle) -> list[int]:
    """Token ids that every vocabulary has, and that are none of its control tokens."""
    from runner.models.generation import genai_config

    vocabulary = int(genai_config(model.folder)["model"].get("vocab_size", 1000))
    return [vocabulary // 2 + at % (vocabulary // 4) for at in range(PROMPT_TOKENS)]
