"""Metrics and evaluators that a recipe's script brings, under Olive's contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from runner.data.olive_handlers import handler_of
from runner.data.olive_modules import MetricResult, OliveModelOutput, SubMetricResult
from runner.data.user_script import UserScript, import_script, script_failure
from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, Problem, RunFailed
from runner.evaluation.metric import Metric
from runner.models.handle import ModelHandle
from runner.recipe.config import MetricConfig, SubMetric

Labelled = Iterable[tuple[Mapping[str, Any], Any]]


def open_script(given: Mapping[str, Any], folder: Path, allowed: bool) -> UserScript:
    """Returns the script that `user_script` and `script_dir` of a metric or evaluator name.

    Raises:
        NotTrusted: it may not run.
        InvalidRecipe, RunFailed: it does not exist, or raised.
    """
    if not allowed:
        raise NotTrusted([str(given["user_script"])])
    script_dir = folder / given["script_dir"] if given.get("script_dir") else None
    return import_script(folder / given["user_script"], script_dir)


def judged_model(metric: MetricConfig, script: UserScript, model: ModelHandle, provider: str) -> Any:
    """Returns what `evaluate_func(model, device, execution_providers)` says of the model."""
    given = metric.user_config or {}
    name = str(given["evaluate_func"])
    device = "cpu" if provider == "CPUExecutionProvider" else "gpu"
    function = script.function(name)
    return _called(
        script, name, lambda: function(handler_of(model), device, [provider], **given.get("evaluate_func_kwargs") or {})
    )


def judged_output(
    metric: MetricConfig,
    script: UserScript,
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    post_process: Callable[[Any], Any] | None,
    batches: Labelled,
) -> Any:
    """Returns what `metric_func(model_output, targets)` says of the model's output over all batches.

    `model_output` has `preds`, what the recipe's post-processing makes of the output, and `logits`, the output itself; both are
    torch tensors (or mappings of them where there are several outputs), as are the targets.
    """
    import torch

    given = metric.user_config or {}
    name = str(given["metric_func"])
    chosen, scores, targets = [], [], []
    for inputs, labels in batches:
        outputs = answer(inputs)
        only = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        chosen.append(_tensors(only if post_process is None else post_process(only)))
        scores.append(_tensors(outputs.get("logits", only)))
        targets.append(None if labels is None else torch.as_tensor(labels))
    if not targets:
        raise DataUnavailable(f"metric '{metric.name}': its data is empty")
    truth = None if any(one is None for one in targets) else torch.cat([one for one in targets if one is not None])
    output = OliveModelOutput(_joined(chosen), _joined(scores))
    function = script.function(name)
    return _called(script, name, lambda: function(output, truth, **given.get("metric_func_kwargs") or {}))


def figures(metric: MetricConfig, subs: Sequence[SubMetric], result: Any) -> list[Metric]:
    """Returns one metric a sub-type of what a script returned: a number, or a mapping by sub-type.

    Raises:
        RunFailed: it is something else, or lacks a sub-type.
    """
    if hasattr(result, "item") and not isinstance(result, Mapping):
        result = result.item()
    if isinstance(result, Number) and len(subs) == 1:
        result = {subs[0].name: result}
    if not isinstance(result, Mapping):
        raise RunFailed(
            "bad-metric", f"metric '{metric.name}' returned a {type(result).__name__}; a number or a mapping was expected"
        )
    missing = [sub.name for sub in subs if sub.name not in result]
    if missing:
        raise RunFailed("bad-metric", f"metric '{metric.name}' returned {', '.join(map(str, result))}, and no '{missing[0]}'")
    try:
        return [Metric(sub.name, float(result[sub.name]), "", True) for sub in subs]
    except (TypeError, ValueError) as error:
        raise RunFailed("bad-metric", f"metric '{metric.name}' returned something else than numbers: {error}") from error


def script_evaluator(
    kind: str, parameters: Mapping[str, Any], model: ModelHandle, provider: str, folder: Path, allowed: bool
) -> list[Metric]:
    """Returns the figures of an evaluator that a script registered with ``olive.evaluator.registry.Registry``.

    Raises:
        InvalidRecipe: the script registers none of that name.
    """
    script = open_script(parameters, folder, allowed)
    found = script.evaluators.get(kind)
    if found is None:
        raise InvalidRecipe(Problem("unknown-evaluator", f"{script.path.name} registers no evaluator '{kind}'"))
    own = {key: value for key, value in parameters.items() if key not in ("user_script", "script_dir")}
    device = "cpu" if provider == "CPUExecutionProvider" else "gpu"

    def run() -> Any:
        return found(**own).evaluate(handler_of(model), [], device, [provider])

    result = _called(script, "evaluate", script.bound(run))
    items: Mapping[str, Any] = result.root if isinstance(result, MetricResult) else dict(result)
    return [_figure(name, one) for name, one in items.items()]


def _figure(name: str, one: Any) -> Metric:
    if isinstance(one, SubMetricResult):
        return Metric(name, float(one.value), "", one.higher_is_better)
    return Metric(name, float(one), "", True)


def _called(script: UserScript, name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise script_failure(script.path.name, error, f"{name}()") from error


def _tensors(value: Any) -> Any:
    import numpy as np
    import torch

    if isinstance(value, Mapping):
        return {name: _tensors(one) for name, one in value.items()}
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else list(value)


def _joined(parts: Sequence[Any]) -> Any:
    import torch

    if isinstance(parts[0], Mapping):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], list):
        return [one for part in parts for one in part]
    return torch.cat(list(parts))
