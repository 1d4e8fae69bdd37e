"""Takes the metrics of an evaluator's list on one model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from runner.errors import DataUnavailable, Problem, RecipeError
from runner.evaluation.accuracy import accuracy, collect, predictions
from runner.evaluation.latency import latency, throughput
from runner.evaluation.metric import Metric
from runner.evaluation.metric_names import OWN, SIZE
from runner.evaluation.size import size_on_disk
from runner.evaluation.subject_process import SubjectProcess
from runner.models.handle import ModelHandle
from runner.recipe.config import DataConfig, MetricConfig, RunConfig, SubMetric
from runner.targets.target import Target, target_of

WARMUP, REPEATS = 10, 20
SMOKE_WARMUP, SMOKE_REPEATS = 1, 3
PROMPT_TOKENS = 32
DEFAULT_STATISTIC = {"latency": "avg", "throughput": "avg", "accuracy": "accuracy_score", "size_on_disk": SIZE}
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Measurement:
    """How metrics are taken in this run; the attributes are the arguments of `runner.evaluation.evaluate.evaluate`."""

    config: RunConfig
    folder: Path
    threads: int
    smoke: bool
    script_allowed: bool
    made_for: Target | None = None

    @cached_property
    def target(self) -> Target:
        """Returns what the output model is made for."""
        return self.made_for or target_of(self.config.system(self.config.target))

    @cached_property
    def device_is_absent(self) -> bool:
        """Returns whether this is a smoke run on a machine without the target's device."""
        import onnxruntime

        return self.smoke and self.target.provider not in onnxruntime.get_available_providers()

    @property
    def provider(self) -> str:
        """Returns the execution provider to measure with: the target's, or the CPU's in place of an absent device."""
        return _CPU if self.device_is_absent else self.target.provider

    def of(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> Sequence[Metric | None]:
        """Returns one metric a sub-type, named `metric-statistic`; None where made-up data cannot tell it."""
        take: dict[str, Callable[..., Sequence[Metric | None]]] = {
            "latency": self._latency,
            "throughput": self._throughput,
            "accuracy": self._accuracy,
            "custom": self._custom,
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
        with _scratch() as scratch, SubjectProcess(model, "measured") as subject:
            if model.kind == "genai":
                subject.load(self.threads, self.provider, generates=True)
                prompt = _prompt(model)
                taken = [subject.ask("generate", prompt=prompt, new_tokens=1)["seconds"][0] for _ in range(warmup + repeats)]
                return tuple(taken[warmup:]), 1, f"prompt of {len(prompt)} tokens to the first new one"
            feed, batch, note = self._feed(metric, model, scratch)
            subject.load(self.threads, self.provider, generates=False)
            pause = float(asked.get("sleep_num", 0))
            answer = subject.ask("time", feed=str(feed), warmup=warmup, repeats=repeats, pause=pause)
            return tuple(answer["seconds"]), batch, note

    def _feed(self, metric: MetricConfig, model: ModelHandle, scratch: Path) -> tuple[Path, int, str | None]:
        """Writes the first batch of the metric's data, or made-up values; returns (file, batch size, note)."""
        import numpy as np

        from runner.models.inputs import made_up, model_inputs

        note = None
        if metric.data_config is not None:
            inputs = next(iter(self._data(metric, model)), None)
            if inputs is None:
                raise DataUnavailable(f"metric '{metric.name}': its data is empty")
        else:
            inputs = made_up(model_inputs(model), model.folder)
            shapes = " and ".join("x".join(map(str, array.shape)) for array in inputs.values() if array.size)
            note = f"made-up inputs: {shapes}"
        path = scratch / "feed.npz"
        np.savez(path, **inputs)
        batch = max((array.shape[0] for array in inputs.values() if array.ndim), default=1)
        return path, batch, note

    def _accuracy(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> Sequence[Metric | None]:
        data, answer = self._data(metric, model), self._answer(model)
        if data.synthetic:
            predictions(answer(next(iter(data))), data.post_process)
            return [None] * len(subs)
        counted = [sub for sub in subs if sub.name != "perplexity"]
        found: dict[str, Metric] = {}
        if counted:
            labels, chosen, scores = collect(data.labelled(), answer, data.post_process)
            found = {sub.name: self._counted(metric, sub, labels, chosen, scores) for sub in counted}
        return [found[sub.name] if sub.name in found else self._perplexity(sub, data, answer) for sub in subs]

    def _counted(self, metric: MetricConfig, sub: SubMetric, labels: Any, chosen: Any, scores: Any) -> Metric:
        """Computes a sub-type by the library that the metric names, or by ourselves where it names none."""
        from runner.evaluation.metric_libraries import huggingface_metric, torch_metric

        if metric.backend == "huggingface_metrics":
            return huggingface_metric(sub, labels, chosen, self.folder, self.script_allowed)
        if metric.backend == "torch_metrics" or sub.metric_config or sub.name not in OWN:
            return torch_metric(sub, labels, chosen, scores)
        return accuracy(sub.name, labels, chosen, scores)

    def _perplexity(self, sub: SubMetric, data: Any, answer: Callable[[Any], Any]) -> Metric:
        from runner.evaluation.metric_libraries import torch_perplexity

        def answers() -> Iterator[tuple[Any, Any]]:
            for inputs, labels in data.labelled():
                if labels is None:
                    raise DataUnavailable("perplexity needs labels, and the data has none")
                outputs = answer(inputs)
                yield outputs.get("logits", next(iter(outputs.values()))), labels

        return torch_perplexity(sub, answers())

    def _custom(self, metric: MetricConfig, subs: Sequence[SubMetric], model: ModelHandle) -> Sequence[Metric | None]:
        from runner.evaluation.custom import figures, judged_model, judged_output, open_script

        given = metric.user_config or {}
        script = open_script(given, self.folder, self.script_allowed)
        if given.get("evaluate_func"):
            return figures(metric, subs, judged_model(metric, script, model, self.provider))
        data = self._data(metric, model)
        result = judged_output(metric, script, self._answer(model), data.post_process, data.labelled())
        return [None] * len(subs) if data.synthetic else figures(metric, subs, result)

    def _answer(self, model: ModelHandle) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Returns the loaded model as a function from inputs to outputs by name."""
        from runner.evaluation.forward import open_forward, outputs_of

        if model.kind == "genai":
            raise RecipeError(
                Problem(
                    "metric-not-served",
                    "a folder of onnxruntime-genai generates text and is not asked for labels",
                    remedy="evaluate it by an LMEvaluator, or name latency, throughput or size_on_disk",
                )
            )
        return partial(outputs_of, open_forward(model, self.threads, self.provider))

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
