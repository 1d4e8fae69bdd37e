"""Language-model tasks through lm-eval: its own back ends for onnxruntime-genai, ONNX Runtime and transformers."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, Problem, RunFailed, did_you_mean
from runner.evaluation.check import TASK_FILES, task_file
from runner.evaluation.metric import Metric
from runner.evaluation.size import size_on_disk
from runner.models.handle import ModelHandle

_CPU = "CPUExecutionProvider"
_BOOTSTRAP = 100_000
_SMOKE_TASK = "smoke_questions"
_QUESTIONS = (
    ("What do people carry when it rains?", ("an umbrella", "a piano", "a fence", "a lake"), 0),
    ("Where do fish live?", ("in a drawer", "in water", "on the roof", "in a book"), 1),
    ("What comes after six?", ("two", "nine", "seven", "zero"), 2),
    ("What is ice made of?", ("sand", "wood", "paper", "water"), 3),
)
_MODEL_CLASSES = {"hf": "hf", "genai": "ortgenai", "onnx": "ort"}


def language_tasks(
    model: ModelHandle,
    asked: Mapping[str, Any],
    folder: Path,
    threads: int,
    provider: str,
    smoke: bool,
    script_allowed: bool,
) -> list[Metric]:
    """Runs lm-eval's tasks and returns their figures, named `task-metric`.

    Args:
        model: the model; a source runs by transformers, whatever `model_class` says.
        asked: the evaluator's keys: `tasks` (names, inline configurations, or .yaml files beside the configuration) and what
            else Olive's LMEvaluator takes.
        folder: folder of the configuration; files that local tasks name are relative to it.
        threads: threads to compute with.
        provider: execution provider.
        smoke: run four questions of our own in place of the tasks, through the same back end.
        script_allowed: whether Python code of a local task may run.

    Raises:
        InvalidRecipe: a task does not exist.
        DataUnavailable: a task's data cannot be had.
        RunFailed: lm-eval stops.
    """
    _quiet()
    import lm_eval

    names = list(asked["tasks"])
    metrics = [_size(model)] if "size_on_disk" in names else []
    names = [name for name in names if name != "size_on_disk"]
    if not names:
        return metrics
    with tempfile.TemporaryDirectory(prefix="recipe-tasks-") as scratch, contextlib.chdir(folder):
        tasks = [_smoke_task(Path(scratch))] if smoke else [_local_or_named(one, folder, script_allowed) for one in names]
        named_anywhere = not smoke and any(isinstance(one, str) and not _is_file(one) for one in tasks)
        manager = _manager(named_anywhere, asked.get("include_path"), folder)
        backend = _backend(model, asked, threads, provider)
        try:
            found = lm_eval.simple_evaluate(
                backend,
                tasks=tasks,
                task_manager=manager,
                num_fewshot=None if smoke else asked.get("num_fewshot"),
                batch_size=asked.get("batch_size") or 1,
                limit=asked.get("limit"),
                bootstrap_iters=0 if smoke else asked.get("bootstrap_iters", _BOOTSTRAP),
                apply_chat_template=bool(asked.get("apply_chat_template", False)),
                log_samples=False,
            )
        except (InvalidRecipe, DataUnavailable):
            raise
        except Exception as error:
            raise RunFailed("evaluation-failed", f"lm-eval stops: {type(error).__name__}: {_first_line(error)}") from error
    note = f"made-up questions in place of {', '.join(map(_told, names))}" if smoke else None
    return [*metrics, *_figures(found or {}, note)]


def _size(model: ModelHandle) -> Metric:
    return replace(size_on_disk(model.folder), name="size_on_disk-bytes")


def _quiet() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _told(task: Any) -> str:
    return str(task.get("task") or task.get("group")) if isinstance(task, Mapping) else str(task)


def _is_file(task: str) -> bool:
    return Path(task).suffix in TASK_FILES


def _local_or_named(task: Any, folder: Path, script_allowed: bool) -> Any:
    """Returns a task as lm-eval takes it; a name that a .yaml file beside the configuration bears becomes that file."""
    if not isinstance(task, str):
        return dict(task)
    file = folder / task if _is_file(task) else task_file(task, folder)
    if file is None:
        return task
    if not file.is_file():
        raise InvalidRecipe(
            Problem("missing-task", f"there is no task file '{task}'", remedy="paths are relative to the configuration")
        )
    if "!function" in file.read_text(encoding="utf-8") and not script_allowed:
        raise NotTrusted([file.name])
    return str(file.resolve())


def _manager(defaults: bool, include_path: str | None, folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):  # type: ignore[misc,unused-ignore]
        """Turns what goes wrong while tasks and their data are loaded into errors that name the task."""

        def load(self, task_list: Any) -> Any:
            for task in task_list if isinstance(task_list, list) else [task_list]:
                if isinstance(task, str) and not _is_file(task) and not self.match_tasks([task]):
                    remedy = did_you_mean(task, self.all_tasks)
                    raise InvalidRecipe(Problem("unknown-task", f"lm-eval has no task '{task}'", remedy=remedy))
            told = ", ".join(map(_told, task_list if isinstance(task_list, list) else [task_list]))
            try:
                return super().load(task_list)
            except Exception as error:  # the HTTP library under `datasets` changes with its releases
                raise DataUnavailable(
                    f"the data of the tasks {told} cannot be had: {type(error).__name__}: {_first_line(error)}",
                    "lm-eval fetches it from the hub; run once with network, or use tasks whose files lie beside the recipe",
                ) from error

    return Manager(include_path=str(folder / include_path) if include_path else None, include_defaults=defaults)


def _backend(model: ModelHandle, asked: Mapping[str, Any], threads: int, provider: str) -> Any:
    kind = _MODEL_CLASSES.get(model.kind, "hf")
    if kind != "hf":
        kind = str(asked.get("model_class") or kind)
        kind = "ortgenai" if kind == "ort" and model.kind == "genai" else kind
    own = {
        "max_length": asked.get("max_length"),
        "batch_size": asked.get("batch_size") or 1,
    }
    if kind == "hf":
        return _transformers_backend(model, own, threads, provider)
    provider = str(asked.get("execution_provider") or provider)
    options = dict(asked.get("provider_options") or {})
    if kind == "ortgenai":
        return _genai_backend()(model, threads, provider, pretrained=str(model.folder), **{**own, "batch_size": 1})
    given = {**own, "batch_size": 1}
    return _session_backend()(str(model.path), execution_provider=provider, provider_options=options, **given)


def _transformers_backend(model: ModelHandle, own: Mapping[str, Any], threads: int, provider: str) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    from runner.data.scripted_model import load_module
    from runner.models.torch_source import load_tokenizer

    torch.set_num_threads(threads)
    device = "cuda" if provider == "CUDAExecutionProvider" and torch.cuda.is_available() else "cpu"
    module: Any = load_module(model).to(device)
    return HFLM(module, tokenizer=load_tokenizer(model), device=device, **own)


def _tokens(backend: Any, text: str, add_special_tokens: bool | None = None) -> list[int]:
    """Encodes as lm-eval's back end for transformers does: with the tokens that the tokenizer itself puts before a text.

    lm-eval's back ends for ONNX leave them out, and a model that knows texts by their first token answers worse then.
    """
    from lm_eval.models.utils import has_bos_prefix

    if add_special_tokens is None and has_bos_prefix(text, backend.tokenizer.decode(backend.prefix_token_id)):
        add_special_tokens = False
    given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    ids: list[int] = backend.tokenizer.encode(text, **given)
    return ids


@cache
def _session_backend() -> Callable[..., Any]:
    from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM

    class SessionBackend(ONNXRuntimeLM):  # type: ignore[misc,unused-ignore]
        """lm-eval's back end for plain ONNX Runtime."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return _tokens(self, string, add_special_tokens)

    return SessionBackend


@cache
def _genai_backend() -> Callable[..., Any]:
    from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM

    from runner.models.generation import GenerationSession

    class GenaiBackend(ONNXRuntimeGenAILM):  # type: ignore[misc,unused-ignore]
        """lm-eval's back end on our sessions: with this machine's threads, and logits of every position from a pruned head."""

        def __init__(self, model: ModelHandle, threads: int, provider: str, **own: Any) -> None:
            self._handle, self._threads, self._on_cpu = model, threads, provider == _CPU
            super().__init__(**own)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return _tokens(self, string, add_special_tokens)

        def _load(self) -> None:
            folder, threads = self._handle.folder, self._threads
            self.session = GenerationSession(folder, threads, every_position=True, on_cpu=self._on_cpu)

        def _forward_logits(self, tokens: list[int]) -> Any:
            return self.session.all_logits(tokens)

        def _generate(self, tokens: list[int], gen_kwargs: dict[str, Any]) -> list[int]:
            wanted: int = gen_kwargs.get("max_gen_toks") or self.max_gen_toks
            room = min(wanted, self.max_length - len(tokens))
            temperature = float(gen_kwargs.get("temperature", 0.0))
            search: dict[str, Any] = {"do_sample": False}
            if gen_kwargs.get("do_sample") and temperature > 0:
                search = {"do_sample": True, "temperature": temperature, "top_p": float(gen_kwargs.get("top_p", 1.0))}
            return [token.id for token in self.session.generate(tokens, room, **search)]

    return GenaiBackend


def _smoke_task(scratch: Path) -> dict[str, Any]:
    """Returns a multiple-choice task on questions of our own, whose file it writes."""
    path = scratch / "questions.jsonl"
    rows = [{"question": question, "choices": list(choices), "answer": answer} for question, choices, answer in _QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "task": _SMOKE_TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(path), "cache_dir": str(scratch / "cache")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _figures(found: Mapping[str, Any], note: str | None) -> Iterator[Metric]:
    for task, results in sorted(found.get("results", {}).items()):
        directions = found.get("higher_is_better", {}).get(task, {})
        errors = {key.partition(",")[0]: value for key, value in results.items()}
        count = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in results.items():
            name = key.partition(",")[0]
            if not isinstance(value, (int, float)) or name.endswith("_stderr") or name in ("alias", "sample_len"):
                continue
            error = errors.get(f"{name}_stderr")
            told = [note, f"{count} questions" if count else None]
            told.append(f"standard error {error:.4f}" if isinstance(error, float) else None)
            higher = directions.get(name)
            yield Metric(
                f"{task}-{name}", float(value), "", True if higher is None else bool(higher), note="; ".join(filter(None, told))
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
