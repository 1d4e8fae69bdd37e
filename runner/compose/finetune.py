"""One command from a model and data to a fine-tuned model: adapter, merged model, and the recipe that makes it ONNX."""

from __future__ import annotations

import json
import os
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.catalog.scaffold import Decision
from runner.compose.calibration import DataWish, located
from runner.compose.folder import Composed
from runner.compose.known import look_up
from runner.compose.optimise import Decided, decide
from runner.compose.optimise import Wish as OptimiseWish
from runner.compose.single_step import Chain, Steps, Wish, compose
from runner.compose.subject import Subject, subject_of
from runner.engine.events import Event
from runner.engine.plan import Request
from runner.engine.run import Outcome, execute, plan_run
from runner.engine.store import Store
from runner.errors import RunFailed, StoreError, UsageError, did_you_mean
from runner.models.adapter import ADAPTER_FOLDER
from runner.models.digest import DigestMemo
from runner.passes.finetune.training import TRAINING_FILE
from runner.targets.target import TARGETS

METHODS = {"lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
_LOW_RANK = ("lora", "qlora", "dora")  # methods with a dropout of their own
_TRAIN, _HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Training:
    """How a model is trained; what is None is left to the pass.

    Attributes:
        method: `METHODS`.
        r, alpha, dropout, target_modules: the adapter.
        max_steps, epochs, batch_size, gradient_accumulation_steps, learning_rate, seed: the training.
        torch_dtype: type of the frozen weights on a GPU.
        eval_split: split that is held out.
        eval_share: share of the training split that is held out where no split is named, from its end; 0 for none.
        messages: column of conversations.
        packing: rows joined to windows of `max_seq_len` tokens.
        answers_only: the loss counts the answer alone; None where the data says what the answer is.
    """

    method: str = "lora"
    r: int = 16
    alpha: float = 32
    dropout: float | None = None
    target_modules: Sequence[str] = ()
    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    seed: int = 42
    torch_dtype: str | None = None
    eval_split: str | None = None
    eval_share: float = 0.1
    messages: str = "messages"
    packing: bool = False
    answers_only: bool | None = None


@dataclass(frozen=True)
class Prepared:
    """A training that can be run: its recipe, the run, and the folder for the results."""

    composed: Composed
    request: Request
    output: Path


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuning left.

    Attributes:
        adapter: folder of the adapter, in peft's format.
        model: folder of the merged model, in transformers' format.
        recipe: folder of the recipe that makes it ONNX.
        onnx: the run that makes it.
        steps: optimiser steps.
        loss: mean loss of the training.
        held_out_before, held_out_after: loss on the held-out examples; None where none were held out.
        seconds: wall time.
    """

    adapter: Path
    model: Path
    recipe: Path
    onnx: Decided = field(repr=False)
    steps: int
    loss: float
    held_out_before: float | None
    held_out_after: float | None
    seconds: float


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
        offline, trust, smoke, threads: see `runner.engine.plan.Request`.
        say: told what is being done.

    Raises:
        RecipeError: whatever stands in the way.
    """
    wanted = DataWish(str(data), text_template=text_template, use_chat_template=chat, max_seq_len=max_seq_len)
    wish = Wish(TARGETS["cpu"], Path(output), offline=offline, trust=trust, smoke=smoke, threads=threads)
    prepared = prepare(subject_of(str(model)), wanted, training or Training(), wish, say)

    def listen(event: Event) -> None:
        if event.text:
            say(event.text)

    return finish(execute(plan_run(prepared.request, say), listen), prepared, wish, precision, say)


def prepare(
    subject: Subject, data: DataWish, training: Training, wish: Wish, say: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Writes the recipe of the training to OUTPUT/model-recipe and returns it with its run.

    Raises:
        UsageError: there is no such method, model or data.
        InvalidRecipe: an option does not fit.
    """
    if training.method not in METHODS:
        raise UsageError("unknown-method", f"there is no method '{training.method}'", did_you_mean(training.method, METHODS))
    if not data.names_data:
        raise UsageError("no-data", "no data to train on was named", "give --data_name or --data_files")
    if subject.kind != "hf":
        raise UsageError("wrong-kind", "only Hugging Face language models are trained", "name an id or a folder of one")
    known = look_up(subject, wish.catalog, wish.offline, say)
    output = (wish.output or Path("models") / f"{known.subject.name}-{training.method}").expanduser().absolute()
    configs = data_configs(data, training)
    chain = Chain(
        training.method, "fp32", _steps(training, held_out=len(configs) > 1), configs, _decisions(data, training, configs)
    )
    inner = Wish(
        wish.target, output / "model", wish.overrides, wish.catalog, wish.command, wish.offline, wish.trust, wish.smoke,
        wish.threads, wish.no_cache,
    )  # fmt: skip
    composed, request = compose(known, chain, inner, f"{known.subject.name}, fine-tuned")
    return Prepared(composed, request, output)


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
        trained = next(step for step in outcome.plan.steps if step.name == _TRAIN)
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
        adapter, outcome.plan.output, onnx.composed.folder, onnx, told["steps"], told["loss"], losses["before"],
        losses["after"], outcome.seconds,
    )  # fmt: skip


def _replace(source: Path, goal: Path) -> None:
    """Copies a folder so that the goal is the old one or the new one, never half of it."""
    fresh = goal.with_name(f".{goal.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    shutil.rmtree(goal, ignore_errors=True)
    fresh.rename(goal)


def data_configs(data: DataWish, training: Training) -> list[dict[str, Any]]:
    """Returns the data config to train on, and the one that is held out where there is one."""
    name, files = located(data)
    split, held_out = data.split or "train", training.eval_split
    if held_out is None and training.eval_share:
        kept = 100 - max(1, round(100 * training.eval_share))
        split, held_out = f"{split}[:{kept}%]", f"{split}[{kept}%:]"
    load = {
        "data_name": name,
        **({"subset": data.subset} if data.subset else {}),
        **({"data_files": files[0] if len(files) == 1 else list(files)} if files else {}),
    }
    return [
        {
            "name": which,
            "type": "HuggingfaceContainer",
            "load_dataset_config": {**load, "split": part},
            "pre_process_data_config": _prepared(data, training),
            "dataloader_config": {"batch_size": 1},
        }
        for which, part in ((_TRAIN, split), (_HELD_OUT, held_out))
        if part
    ]


def _prepared(data: DataWish, training: Training) -> dict[str, Any]:
    if data.use_chat_template and data.text_template:
        raise UsageError("bad-usage", "--text_template and --chat_template do not go together", "give one of them")
    text = {"text_template": data.text_template} if data.text_template else {"text_cols": data.text_field or "text"}
    named = _fields(data.text_template)
    if data.text_template and not named:
        raise UsageError("bad-template", "--text_template names no column", "write a column as {name}")
    answers = training.answers_only
    if answers is None:
        answers = not training.packing and (data.use_chat_template or len(named) > 1)
    return {
        "type": "text_generation_huggingface_pre_process",
        "strategy": "join" if training.packing else "line-by-line",
        **({"chat_template": True, "message_col": training.messages} if data.use_chat_template else text),
        **({"completion_only_loss": True} if answers else {}),
        "max_seq_len": data.max_seq_len or 512,
        **({"max_samples": data.max_samples} if data.max_samples else {}),
        **({} if training.packing else {"pad_to_max_len": False}),
        **({"joiner": None} if training.packing else {}),
    }


def _fields(template: str | None) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template or "") if name]
    except ValueError as error:
        raise UsageError("bad-template", f"--text_template: {error}", "write a brace that is no column as {{ or }}") from None


def _steps(training: Training, held_out: bool) -> Steps:
    given = {
        "max_steps": training.max_steps, "num_train_epochs": training.epochs, "seed": training.seed,
        "per_device_train_batch_size": training.batch_size, "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps, "learning_rate": training.learning_rate,
        "logging_steps": 10 if (training.max_steps or 100) >= 10 else 1,
    }  # fmt: skip
    train = {
        "type": METHODS[training.method],
        "train_data_config": _TRAIN,
        **({"eval_data_config": _HELD_OUT} if held_out else {}),
        "r": training.r,
        "alpha": training.alpha,
        **({"lora_dropout": training.dropout} if training.dropout is not None and training.method in _LOW_RANK else {}),
        **({"target_modules": list(training.target_modules)} if training.target_modules else {}),
        **({"torch_dtype": training.torch_dtype} if training.torch_dtype else {}),
        "training_args": {key: value for key, value in given.items() if value is not None},
    }
    return {_TRAIN: train, "merge": {"type": "MergeAdapterWeights"}}


def _decisions(data: DataWish, training: Training, configs: Sequence[Mapping[str, Any]]) -> tuple[Decision, ...]:
    answers = "completion_only_loss" in configs[0]["pre_process_data_config"]
    held = configs[1]["load_dataset_config"]["split"] if len(configs) > 1 else "none"
    return (
        Decision("method", training.method, METHODS[training.method]),
        Decision("data", data.data_name or ", ".join(data.data_files), str(configs[0]["load_dataset_config"]["split"])),
        Decision("held out", str(held), "its loss is told before and after"),
        Decision("loss", "on the answer" if answers else "on the whole text", "the last column or message is the answer"),
    )
