"""Accuracy by the libraries that Olive's backends stand for: torchmetrics and Hugging Face's evaluate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, Problem
from runner.evaluation.metric import Metric
from runner.evaluation.metric_names import HUGGINGFACE, LOWER_IS_BETTER, TORCH
from runner.recipe.config import SubMetric

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_IGNORED = -100


def torch_metric(sub: SubMetric, labels: Array, chosen: Array, scores: Array | None) -> Metric:
    """Returns a figure of torchmetrics; `metric_config` goes to its class, ``task`` is ``binary`` unless it says otherwise.

    Args:
        sub: the sub-type and its `metric_config`.
        labels: [n], classes or texts.
        chosen: [n], classes or texts.
        scores: [n, classes]; only the area under the curve needs them.

    Raises:
        DataUnavailable: scores are missing, or torchmetrics does not take these values.
        InvalidRecipe: `metric_config` does not fit the metric.
    """
    import torch

    metric = _torch_metric(sub)
    try:
        if sub.name == "wer":
            value = metric([str(one) for one in chosen], [str(one) for one in labels])
        elif sub.name == "auroc":
            value = metric(_scores(scores, sub), torch.from_numpy(labels).long())
        else:
            value = metric(torch.from_numpy(chosen), torch.from_numpy(labels))
    except (ValueError, RuntimeError, TypeError) as error:
        cause = f"torchmetrics cannot compute '{sub.name}' of these values: {str(error).splitlines()[0]}"
        raise DataUnavailable(cause, "metric_config says what they are: task (binary, multiclass), num_classes") from error
    return _metric(sub.name, float(value), f"torchmetrics, {len(labels)} labels")


def torch_perplexity(sub: SubMetric, answers: Iterable[tuple[Array, Array]]) -> Metric:
    """Returns torchmetrics' perplexity of language-model logits.

    Args:
        sub: the sub-type; its `metric_config` may name `ignore_index`, -100 by default.
        answers: (logits [batch, tokens, vocabulary], token ids [batch, tokens]); row t of the logits predicts token t + 1.

    Raises:
        DataUnavailable: the shapes are others.
    """
    import torch

    metric = _torch_metric(SubMetric(name=sub.name, metric_config={"ignore_index": _IGNORED, **(sub.metric_config or {})}))
    count = 0
    for logits, labels in answers:
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            shapes = f"logits of the shape {list(logits.shape)} and labels of {list(labels.shape)}"
            raise DataUnavailable(f"perplexity needs a score for every word and token, and gets {shapes}")
        metric.update(torch.from_numpy(logits[:, :-1]).float(), torch.from_numpy(labels[:, 1:]).long())
        count += int((labels[:, 1:] != _IGNORED).sum())
    if not count:
        raise DataUnavailable("perplexity needs labels, and there are none")
    return _metric(sub.name, float(metric.compute()), f"torchmetrics, {count} tokens")


def _torch_metric(sub: SubMetric) -> Any:
    import inspect

    import torchmetrics

    owner: Any = torchmetrics
    for part in TORCH[sub.name].split("."):
        owner = getattr(owner, part)
    given = {key: value for key, value in (sub.metric_config or {}).items() if value is not None and key != "kwargs"}
    given.update((sub.metric_config or {}).get("kwargs") or {})
    if "task" in inspect.signature(owner.__new__).parameters:
        given.setdefault("task", "binary")
    try:
        return owner(**given)
    except (ValueError, TypeError) as error:
        cause = f"metric_config of '{sub.name}' is not what torchmetrics takes: {str(error).splitlines()[0]}"
        raise InvalidRecipe(Problem("bad-value", cause)) from error


def _scores(scores: Array | None, sub: SubMetric) -> Any:
    import torch

    if scores is None:
        raise DataUnavailable("auroc needs scores, and the post-processing gives classes", "return the scores instead")
    tensor = torch.from_numpy(scores).float()
    binary = (sub.metric_config or {}).get("task", "binary") == "binary"
    return tensor.softmax(-1)[:, 1] if binary and tensor.ndim > 1 and tensor.shape[-1] == 2 else tensor


def huggingface_metric(sub: SubMetric, labels: Array, chosen: Array, folder: Path, script_allowed: bool) -> Metric:
    """Returns a figure of the `evaluate` package, with `load_params`, `compute_params` and `result_key` of `metric_config`.

    Its metrics are scripts that the hub serves. Those that only call a function of scikit-learn (accuracy, f1 …) are computed
    by that function, with no network; another one must lie beside the configuration or in the package's cache.

    Args:
        sub: the sub-type; its name is the metric's, or a script's beside the configuration.
        labels: [n].
        chosen: [n].
        folder: folder of the configuration.
        script_allowed: whether a metric's script may run.

    Raises:
        DataUnavailable: the metric cannot be had, or does not take these values.
        NotTrusted: its script lies beside the configuration and may not run.
    """
    asked = dict(sub.metric_config or {})
    compute = asked.get("compute_params") or {}
    beside = folder / sub.name
    if sub.name in HUGGINGFACE and not beside.exists():
        import sklearn.metrics

        function = getattr(sklearn.metrics, HUGGINGFACE[sub.name])
        result: Any = {sub.name: _computed(sub.name, lambda: function(labels, chosen, **compute))}
        note = f"scikit-learn's {HUGGINGFACE[sub.name]}, {len(labels)} labels"
    else:
        if beside.exists() and not script_allowed:
            raise NotTrusted([sub.name])
        loaded = _load(str(beside) if beside.exists() else sub.name, asked.get("load_params") or {})
        result = _computed(sub.name, lambda: loaded.compute(predictions=chosen, references=labels, **compute))
        note = f"evaluate's {sub.name}, {len(labels)} labels"
    for key in str(asked.get("result_key") or Path(sub.name).stem).split("."):
        if not isinstance(result, Mapping) or key not in result:
            known = ", ".join(result) if isinstance(result, Mapping) else str(result)
            raise DataUnavailable(f"the metric '{sub.name}' gives no '{key}'; it gives {known}", "name another result_key")
        result = result[key]
    return _metric(sub.name, float(result), note)


def _load(name: str, parameters: Mapping[str, Any]) -> Any:
    try:
        import evaluate

        return evaluate.load(name, **parameters)
    except ImportError as error:
        raise DataUnavailable(f"the metric '{name}' needs a package: {error}", "pip install it") from error
    except Exception as error:  # whatever the HTTP library raises
        raise DataUnavailable(
            f"the metric '{name}' of the evaluate package cannot be had: {str(error).splitlines()[0]}",
            f"without network: put its script beside the configuration, or use one of {', '.join(HUGGINGFACE)}",
        ) from error


def _computed(name: str, compute: Any) -> Any:
    try:
        return compute()
    except (ValueError, TypeError) as error:
        raise DataUnavailable(f"'{name}' cannot be computed of these values: {str(error).splitlines()[0]}") from error


def _metric(name: str, value: float, note: str) -> Metric:
    return Metric(name, value, "", name not in LOWER_IS_BETTER, note=note)
