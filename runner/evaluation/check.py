"""What is wrong with an evaluator, and what it needs that is not installed. Imports no ML library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.errors import Place, Problem, did_you_mean
from runner.evaluation.metric_names import HUGGINGFACE, LATENCY_STATISTICS, OWN, SIZE, TORCH
from runner.recipe.config import Evaluator, MetricConfig, RunConfig

LANGUAGE_MODEL, TEXT_EMBEDDING = "lmevaluator", "mtebevaluator"
_METRIC_LISTS = (None, "oliveevaluator", "onnxevaluator", "pytorchevaluator")
_TASK_KEYS = frozenset(
    {"tasks", "model_class", "batch_size", "max_length", "execution_provider", "provider_options", "device", "user_script",
     "script_dir", "type_args"}
)  # fmt: skip
_LANGUAGE_MODEL_KEYS = _TASK_KEYS | {"limit", "bootstrap_iters", "num_fewshot", "include_path", "apply_chat_template"}
_TEXT_EMBEDDING_KEYS = _TASK_KEYS | {"eval_splits", "eval_subsets", "output_folder"}
_MODEL_CLASSES = ("hf", "ort", "ortgenai")
_USER_CONFIG_KEYS = frozenset(
    {"script_dir", "user_script", "data_dir", "batch_size", "inference_settings", "shared_kv_buffer", "io_bind", "run_kwargs",
     "warmup_num", "repeat_test_num", "sleep_num", "metric_func", "metric_func_kwargs", "evaluate_func",
     "evaluate_func_kwargs", "post_processing_func", "dataloader_func", "input_names", "input_shapes", "input_types"}
)  # fmt: skip
_TIMING = tuple(LATENCY_STATISTICS)
TASK_FILES = (".yaml", ".yml")
_BACKENDS = ("torch_metrics", "huggingface_metrics")


def kind_of(evaluator: Evaluator) -> str | None:
    """Returns the evaluator's type in small letters; None for a list of metrics."""
    kind = evaluator.type.lower() if evaluator.type else None
    return None if kind in _METRIC_LISTS else kind


def parameters_of(evaluator: Evaluator) -> dict[str, Any]:
    """Returns the keys of an evaluator of another type than a list of metrics, wherever they stand."""
    extra = dict(evaluator.model_extra or {})
    return {**(extra.pop("type_args", None) or {}), **extra}


def check_evaluator(config: RunConfig, place_of: Callable[..., Place | None] = lambda *_: None) -> list[Problem]:
    """Returns what is wrong with the run's evaluator, before any work.

    Args:
        config: the configuration.
        place_of: where in its file the value at a path of keys and indices stands.
    """
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return []
    if kind_of(evaluator) is None:
        return [
            replace(problem, place=place_of("evaluators", config.evaluator, "metrics", at))
            for at, metric in enumerate(evaluator.metrics)
            for problem in _check_metric(metric)
        ]
    return [replace(problem, place=place_of("evaluators", config.evaluator)) for problem in _check_typed(config, evaluator)]


def _check_typed(config: RunConfig, evaluator: Evaluator) -> list[Problem]:
    """Checks an evaluator that is no list of metrics."""
    kind, parameters = kind_of(evaluator), parameters_of(evaluator)
    if kind in (LANGUAGE_MODEL, TEXT_EMBEDDING):
        known = _LANGUAGE_MODEL_KEYS if kind == LANGUAGE_MODEL else _TEXT_EMBEDDING_KEYS
        return _check_tasks(f"evaluator '{config.evaluator}'", parameters, known)
    if parameters.get("user_script"):
        return []  # a script registers it, which only shows when it is run
    remedy = did_you_mean(str(evaluator.type), ("LMEvaluator", "MTEBEvaluator"))
    cause = f"evaluator '{config.evaluator}': type {evaluator.type} does not exist"
    return [Problem("unknown-evaluator", cause, remedy=f"{remedy}; an evaluator of your own needs user_script")]


def missing_packages(config: RunConfig, smoke: bool = False) -> list[Problem]:
    """Returns what the run's evaluator needs that is not installed here; nothing is wrong with the configuration.

    Args:
        config: the configuration.
        smoke: a smoke run, which needs less.
    """
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return []
    kind = kind_of(evaluator)
    needed: dict[str, str] = {}
    if kind == LANGUAGE_MODEL:
        needed["lm_eval"] = "lm-eval"
    elif kind == TEXT_EMBEDDING and not smoke:
        needed["mteb"] = "mteb"
    for metric in evaluator.metrics if kind is None else ():
        for sub in metric.sub_types if metric.type == "accuracy" else ():
            if metric.backend == "huggingface_metrics":
                package = ("sklearn", "scikit-learn") if sub.name in HUGGINGFACE else ("evaluate", "evaluate")
                needed[package[0]] = package[1]
            elif sub.name not in OWN or sub.metric_config or metric.backend == "torch_metrics":
                needed["torchmetrics"] = "torchmetrics"
    return [
        Problem(
            "package-missing",
            f"evaluator '{config.evaluator}' needs the package {package}, which is not installed",
            remedy=f"pip install {package}",
        )
        for module, package in needed.items()
        if find_spec(module) is None
    ]


def evaluation_files(config: RunConfig, folder: Path) -> list[Path]:
    """Returns the files beside the configuration that decide what the run's evaluator finds, data configurations apart.

    These are scripts of metrics and evaluators, metrics that lie here as scripts, and task files with what they mention.

    Args:
        config: the configuration.
        folder: its folder.
    """
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return []
    parameters = parameters_of(evaluator)
    found = [
        file
        for given in (parameters, *(one.user_config or {} for one in evaluator.metrics))
        for file in _scripts(given, folder)
    ]
    found += [folder / sub.name for metric in evaluator.metrics for sub in metric.sub_types if metric.backend == _BACKENDS[1]]
    for file in _task_files(parameters, folder):
        text = file.read_text(encoding="utf-8")
        found += [file, *(other for other in file.parent.iterdir() if other.name in text)]
    return sorted({file.resolve() for file in found if file.is_file()})


def _scripts(given: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    if given.get("user_script"):
        yield folder / str(given["user_script"])
    if given.get("script_dir"):
        yield from (folder / str(given["script_dir"])).rglob("*.py")


def _task_files(parameters: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Yields task files that are named, that lie in the folder of tasks, or that bear the name of a task."""
    names = [str(task) for task in parameters.get("tasks") or () if isinstance(task, str)]
    yield from (folder / name for name in names if Path(name).suffix in TASK_FILES and (folder / name).is_file())
    if parameters.get("include_path"):
        yield from (one for one in (folder / str(parameters["include_path"])).rglob("*") if one.suffix in TASK_FILES)
    elif names:
        yield from (one for name in names if (one := task_file(name, folder)) is not None)


def task_file(task: str, folder: Path) -> Path | None:
    """Returns the file beside the configuration that describes an lm-eval task, or None."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in TASK_FILES)
    return next((path for path in files if f"task: {task}" in path.read_text(encoding="utf-8").splitlines()), None)


def _check_tasks(subject: str, parameters: Mapping[str, Any], known: frozenset[str]) -> list[Problem]:
    problems = [
        Problem("unknown-key", f"{subject}: unknown key '{key}'", remedy=did_you_mean(key, known))
        for key in parameters
        if key not in known
    ]
    tasks = parameters.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        problems.append(Problem("missing-key", f"{subject}: 'tasks' must list the tasks to run"))
    model_class = parameters.get("model_class")
    if model_class is not None and model_class not in _MODEL_CLASSES:
        remedy = did_you_mean(str(model_class), _MODEL_CLASSES)
        problems.append(Problem("bad-value", f"{subject}: model_class {model_class} does not exist", remedy=remedy))
    return problems


def _check_metric(metric: MetricConfig) -> list[Problem]:
    subject = f"metric '{metric.name}'"
    problems = [
        Problem("unknown-key", f"{subject}: user_config has no '{key}'", remedy=did_you_mean(key, _USER_CONFIG_KEYS))
        for key in metric.user_config or {}
        if key not in _USER_CONFIG_KEYS
    ]
    if metric.backend is not None and metric.backend not in _BACKENDS:
        remedy = did_you_mean(metric.backend, _BACKENDS)
        problems.append(Problem("bad-value", f"{subject}: backend {metric.backend} does not exist", remedy=remedy))
    if metric.type == "custom":
        return [*problems, *_check_custom(subject, metric)]
    known = _known_sub_types(metric)
    problems += [
        Problem("unknown-sub-type", f"{subject}: {metric.type} has no '{sub.name}'", remedy=did_you_mean(sub.name, known))
        for sub in metric.sub_types
        if known and sub.name not in known
    ]
    if metric.type == "accuracy" and metric.data_config is None:
        problems.append(Problem("missing-key", f"{subject}: accuracy needs labelled data", remedy="name a data_config"))
    return problems


def _known_sub_types(metric: MetricConfig) -> tuple[str, ...]:
    """Returns the sub-types of a metric; none where the `evaluate` package decides what there is."""
    if metric.type in ("latency", "throughput"):
        return _TIMING
    if metric.type == "size_on_disk":
        return (SIZE,)
    return () if metric.backend == "huggingface_metrics" else (*TORCH, *(name for name in OWN if name not in TORCH))


def _check_custom(subject: str, metric: MetricConfig) -> list[Problem]:
    given = metric.user_config or {}
    problems = []
    if not given.get("metric_func") and not given.get("evaluate_func"):
        remedy = "name metric_func (a function of output and targets) or evaluate_func (of the model) in user_config"
        problems.append(Problem("missing-key", f"{subject}: it names no function", remedy=remedy))
    if not given.get("user_script"):
        problems.append(Problem("missing-key", f"{subject}: it names no script", remedy="name user_script in user_config"))
    if given.get("metric_func") and not given.get("evaluate_func") and metric.data_config is None:
        problems.append(Problem("missing-key", f"{subject}: metric_func needs data", remedy="name a data_config"))
    if not metric.sub_types:
        problems.append(Problem("missing-key", f"{subject}: it has no sub_types", remedy="name the figures it returns"))
    return problems
