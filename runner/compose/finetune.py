"""One command from a model and data to a fine-tuned model: adapter, merged model, and the recipe that makes it ONNX."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.catalog.scaffold import Decision
from runner.compose.arguments import check_count, check_is, check_threads
from runner.compose.calibration import DataWish
from runner.compose.folder import Composed
from runner.compose.known import Known, look_up
from runner.compose.optimise import Decided, decide
from runner.compose.optimise import Wish as OptimiseWish
from runner.compose.single_step import Chain, Wish, compose
from runner.compose.subject import Subject, subject_of
from runner.compose.training import METHODS, TRAIN, Training, data_configs, survey_rows, training_decisions, training_steps
from runner.engine.events import Event
from runner.engine.request import Request
from runner.engine.run import Outcome, execute, plan_run
from runner.engine.store import Store
from runner.errors import RunFailed, StoreError, UsageError, did_you_mean
from runner.models.adapter import ADAPTER_FOLDER
from runner.models.checkpoint import read_json
from runner.models.digest import DigestMemo
from runner.models.tasks import WITH_PAST
from runner.passes.finetune.training import TRAINING_FILE
from runner.targets.target import TARGETS, Target

_AS_INPUTS = ("lora", "qlora")  # methods whose factors the graphs of onnxruntime-genai's builder take as inputs
MULTI_LORA = "multi-lora"  # folder of the base model that takes adapters
ADAPTER_FILE = "adapter_weights.onnx_adapter"  # the trained one in it
_UNQUANTISED = ("fp32", "fp16")
TEXT_GENERATION = "text-generation"


@dataclass(frozen=True)
class Prepared:
    """A training that can be run: its recipe, the run, and the folder for the results.

    Attributes:
        composed, request: the training.
        output: the folder.
        multi_lora: the run behind it that makes the base model whose graph takes adapters; None where that was not asked for.
    """

    composed: Composed
    request: Request
    output: Path
    multi_lora: Request | None = None


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuning left.

    Attributes:
        adapter: folder of the adapter, in peft's format.
        model: folder of the merged model, in transformers' format.
        recipe: folder of the recipe that makes it ONNX.
        onnx: the run that makes it.
        multi_lora: folder of the base model whose graph takes adapters, with the file of this one; None without.
        steps: optimiser steps.
        examples: examples that it trained on.
        left_out: examples left out, since the same text is held out.
        loss: mean loss of the training.
        held_out_before, held_out_after: loss on the held-out examples; None where none were held out.
        seconds: wall time.
    """

    adapter: Path
    model: Path
    recipe: Path
    onnx: Decided = field(repr=False)
    steps: int
    examples: int
    left_out: int
    loss: float
    held_out_before: float | None
    held_out_after: float | None
    seconds: float
    multi_lora: Path | None = None


def finetune(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    text_template: str | None = None,
    chat: bool = False,
    max_seq_len: int = 512,
    training: Training | None = None,
    precision: str | None = None,
    multi_lora: str | None = None,
    offline: bool = False,
    trust: bool = False,
    smoke: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> FineTuned:
    """Trains an adapter, merges it, and writes the recipe that turns the result into ONNX.

    Args:
        model: Hugging Face id or folder of a language model.
        data: id of the hub, a file (json, jsonl, csv, parquet) or a folder.
        output: folder for `adapter`, `model` and the recipes.
        text_template: text of a row, with {column} in it; the column `text` when None.
        chat: rows are conversations, put into the model's chat template.
        max_seq_len: tokens of an example.
        training: how to train.
        precision: of the ONNX recipe; int4 when None.
        multi_lora: make an ONNX base model as well whose graph takes adapters: ``fp32``, ``fp16``, or ``auto``.
        offline, trust, smoke, threads: see `runner.engine.request.Request`.
        say: told what is being done.

    Raises:
        UsageError: an argument is none that is taken.
        RecipeError: whatever stands in the way.
    """
    check_count("max_seq_len", max_seq_len)
    check_threads(threads)
    check_is("training", training, Training, "training=Training(max_steps=100)")
    wanted = DataWish(str(data), text_template=text_template, use_chat_template=chat, max_seq_len=max_seq_len)
    wish = Wish(TARGETS["cpu"], Path(output), offline=offline, trust=trust, smoke=smoke, threads=threads)
    prepared = prepare(subject_of(str(model)), wanted, training or Training(), wish, multi_lora, say)

    def listen(event: Event) -> None:
        if event.text:
            say(event.text)

    made = finish(execute(plan_run(prepared.request, say), listen), prepared, wish, precision, say)
    if prepared.multi_lora is not None:
        execute(plan_run(prepared.multi_lora, say), listen)
    return made


def prepare(
    subject: Subject,
    data: DataWish,
    training: Training,
    wish: Wish,
    multi_lora: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Writes the recipe of the training to OUTPUT/model-recipe and returns it with its run.

    Args:
        subject: the model.
        data: the rows.
        training: how to train.
        wish: where to, and what for.
        multi_lora: precision of a base model that takes adapters, ``auto`` for the target's own; None for no such model.
        say: told what is asked for.

    Raises:
        UsageError: there is no such method, model or data, or graphs of this model take no adapters of the method.
        InvalidRecipe: an option does not fit.
    """  # fmt: skip
    if training.method not in METHODS:
        raise UsageError("unknown-method", f"there is no method '{training.method}'", did_you_mean(training.method, METHODS))
    if not data.names_data:
        raise UsageError("no-data", "no data to train on was named", "give --data_name or --data_files")
    if subject.kind != "hf":
        raise UsageError("wrong-kind", "only Hugging Face language models are trained", "name an id or a folder of one")
    configs, rows = data_configs(data, training), survey_rows(data, training)
    known = look_up(subject, wish.catalog, wish.offline, say)
    task = (known.subject.task or TEXT_GENERATION).removesuffix(WITH_PAST)
    if task != TEXT_GENERATION:
        raise UsageError("wrong-kind", f"{subject.word} is a model for {task}", "only language models are trained")
    output = (wish.output or Path("models") / f"{known.subject.name}-{training.method}").expanduser().absolute()
    if known.subject.folder is not None and output.resolve() == known.subject.folder.resolve():
        raise UsageError("output-occupied", f"{output} holds the model that is trained", "choose another --output_path")
    if data.use_chat_template and known.subject.folder is not None and not _has_chat_template(known.subject.folder):
        cause = f"the tokenizer in {known.subject.folder} has no chat template"
        raise UsageError("no-chat-template", cause, "say with --text_template how a row reads as text")
    weights = None if multi_lora is None else _multi_lora_precision(known, training, wish.target, multi_lora)
    train, decisions = training_steps(training, held_out=len(configs) > 1), training_decisions(data, training, configs, rows)
    if weights is not None:
        decisions += (Decision("multi-LoRA", weights, "an ONNX base model that takes this adapter and others as inputs"),)
    merging = Chain(training.method, "fp32", {**train, "merge": {"type": "MergeAdapterWeights"}}, configs, decisions)
    title = f"{known.subject.name}, fine-tuned"
    composed, request = compose(known, merging, replace(wish, output=output / "model"), title)
    if weights is None:
        return Prepared(composed, request, output)
    steps = {**train, "build": {"type": "ModelBuilder", "precision": weights}, "extract": {"type": "ExtractAdapters"}}
    taking = Chain("multi-lora", weights, steps, configs, decisions)
    behind = replace(wish, output=output / MULTI_LORA, no_cache=False)  # the training was made a moment ago
    return Prepared(composed, request, output, compose(known, taking, behind, f"{title}, with its adapter apart")[1])


def _has_chat_template(folder: Path) -> bool:
    """Says whether a tokenizer tells how a conversation reads as text; a folder without a tokenizer is refused elsewhere."""
    told = folder / "tokenizer_config.json"
    if not told.is_file() or any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool(read_json(told).get("chat_template"))


def _multi_lora_precision(known: Known, training: Training, target: Target, asked: str) -> str:
    """Returns the precision of a base model that takes adapters.

    Raises:
        UsageError: there is none for this method, model or target.
    """
    rule, merged = "multi-lora-unsupported", "leave --multi_lora out: the merged model becomes ONNX"
    if training.method not in _AS_INPUTS:
        cause = f"graphs take the factors of LoRA as inputs, and this is {METHODS[training.method]}"
        raise UsageError(rule, cause, f"--method {' or '.join(_AS_INPUTS)}, or {merged}")
    if known.kind is None or known.kind.name != "genai":
        told = f"'{known.architecture}'" if known.architecture else "this architecture"
        raise UsageError(rule, f"onnxruntime-genai's builder makes no language model of {told}", merged)
    served = [one for one in _UNQUANTISED if one in target.precisions]
    precision = served[-1 if target.device == "gpu" else 0] if asked == "auto" else asked
    if precision not in served:
        raise UsageError(rule, f"{target.provider} runs no {precision} model", f"--multi_lora {' or '.join(served)}")
    return precision


def finish(
    outcome: Outcome, prepared: Prepared, wish: Wish, precision: str | None = None, say: Callable[[str], None] = lambda _: None
) -> FineTuned:
    """Puts the adapter beside the merged model, writes the recipe to ONNX, and returns what there is.

    Raises:
        RunFailed: the store has lost the adapter.
        StoreError: the output folder cannot be written.
    """
    adapter = prepared.output / ADAPTER_FOLDER
    with DigestMemo(outcome.plan.places.digests) as memo:
        trained = next(step for step in outcome.plan.steps if step.name == TRAIN)
        entry = Store(outcome.plan.places, memo).get(trained.fingerprint or "")
        if entry is None:
            raise RunFailed("result-missing", "the store has no adapter", "run again with --no-cache")
        try:
            _replace(entry.model.folder / ADAPTER_FOLDER, adapter)
        except OSError as error:
            raise StoreError("cannot-write", f"{adapter}: {error.strerror or error}", "choose another --output_path") from None
    told = json.loads((adapter / TRAINING_FILE).read_text(encoding="utf-8"))
    onnx = decide(
        OptimiseWish(
            subject_of(str(outcome.plan.output)), prepared.output / "onnx", wish.target, precision or "int4",
            catalog=wish.catalog, command=wish.command, offline=wish.offline, trust=wish.trust, threads=wish.threads,
        ),
        say,
    )  # fmt: skip
    losses: Mapping[str, float | None] = told["held_out_loss"]
    return FineTuned(
        adapter, outcome.plan.output, onnx.composed.folder, onnx, told["steps"], told["examples"],
        told["left_out"], told["loss"], losses["before"], losses["after"], outcome.seconds,
        prepared.output / MULTI_LORA if prepared.multi_lora else None,
    )  # fmt: skip


def _replace(source: Path, goal: Path) -> None:
    """Copies a folder so that the goal is the old one or the new one, never half of it."""
    fresh = goal.with_name(f".{goal.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    shutil.rmtree(goal, ignore_errors=True)
    fresh.rename(goal)
