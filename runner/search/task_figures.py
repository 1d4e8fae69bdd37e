"""Which figures there will be of a model, told from its task, its passes and the data that judges, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence

from runner.bench.scenarios import CLASSIFIERS, EMBEDDINGS, MASKED_WORDS, ZERO_SHOT
from runner.engine.request import Request
from runner.errors import InvalidRecipe, Problem
from runner.passes import table
from runner.recipe.info import Evaluation
from runner.search.aims import DECODE_LATENCY, FREE, Aims, evaluated_figures


def task_of(request: Request) -> str | None:
    """Returns the task that the configuration or the recipe names; None where only the model's files tell."""
    return request.config.input_model.task or (request.info.model.task if request.info else None)


def check_task_has(aims: Aims, request: Request, task: str) -> None:
    """Refuses aims that no model of this task has figures for.

    Raises:
        InvalidRecipe: with every such figure, and those that the task has.
    """
    there = figures_of(request, task)
    absent = [name for name in aims.metrics if name not in there]
    if absent:
        told = f"it has: {', '.join(there)}"
        raise InvalidRecipe(
            *(Problem("figure-not-measured", f"{_what(request, task)} has no figure '{name}'", remedy=told) for name in absent)
        )


def figures_of(request: Request, task: str) -> tuple[str, ...]:
    """Returns the names of all figures that a search of a request can be about, those of the task first."""
    evaluation = request.info.evaluation if request.info else Evaluation()
    own = (name for name, _, _, _ in evaluated_figures(request.config))
    return tuple(dict.fromkeys([*_of_task(task, _kinds(request), evaluation), *FREE, "load", "peak_rss", *own]))


def _kinds(request: Request) -> Sequence[bool]:
    """Says whether the result generates by itself, as GenAI's folders do; both where the passes are still to be chosen."""
    if any(not axis.option for axis in request.loaded.axes):
        return (True, False)
    given = [kind for step in request.config.passes.values() if (kind := table.get(step.type).gives)]
    return (given[-1:] == ["genai"],)


def _of_task(task: str, kinds: Sequence[bool], evaluation: Evaluation) -> list[str]:
    """What `runner.bench.bench` measures: speeds, then qualities."""
    speaks, hears = task.startswith("text-generation"), task == "automatic-speech-recognition"
    if task == "text-to-image":
        return ["image_time", "step_time", "psnr"]
    found: list[str] = []
    if True in kinds and speaks:
        found += ["decode", DECODE_LATENCY, "ttft"]
    if True in kinds and hears:
        found += ["rtf", *(["wer"] if evaluation.speech else [])]
    called = False in kinds or not (speaks or hears)  # input by input
    found += ["latency", "throughput"] if called else []
    if speaks:
        return [*found, *(["perplexity"] if evaluation.text else [])]
    if not called:
        return found
    labelled = bool(evaluation.images) and task in (*CLASSIFIERS, ZERO_SHOT)
    found += ["accuracy"] if labelled else []
    found += ["spearman", "pearson"] if evaluation.pairs and task in EMBEDDINGS else []
    found += ["agreement"] if labelled or task in (*MASKED_WORDS, *CLASSIFIERS) else []
    return [*found, "cosine", "cosine_min"]


def _what(request: Request, task: str) -> str:
    return f"a model for {task}" + ("" if request.info else ", without a recipe's evaluation data,")
