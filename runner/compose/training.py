"""What a training is told: how to train, on which rows, and which rows are held out; and the passes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.catalog.scaffold import Decision
from runner.compose.calibration import DataWish, columns_read, fields_of, located
from runner.compose.row_survey import Read, Rows, survey
from runner.compose.single_step import Steps
from runner.errors import UsageError

METHODS = {"lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
TRAIN, HELD_OUT = "train", "held_out"
_LOW_RANK = ("lora", "qlora", "dora")  # methods with a dropout of their own
_ON_ANSWERS = "on the answer", "the last column or message is the answer"
_ON_EVERYTHING = "on the whole text", "nothing tells an answer from the rest, or --packing or --whole_text asks for it"
_LOSSES = 0.05  # share of the steps between two losses that are told


@dataclass(frozen=True)
class Training:
    """How a model is trained; what is None is left to the pass.

    Attributes:
        method: `METHODS`.
        r, alpha, dropout, target_modules: the adapter.
        max_steps, epochs, batch_size, gradient_accumulation_steps, learning_rate, seed: the training; the seed also draws
            the rows that are held out.
        torch_dtype: type of the frozen weights on a GPU.
        eval_split: split that is held out.
        eval_rows: rows that are held out, drawn from `eval_split`, or from the training split where that is not named.
        eval_share: share of the training split that is held out where neither is given; 0 for none.
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
    eval_rows: int | None = None
    eval_share: float = 0.1
    messages: str = "messages"
    packing: bool = False
    answers_only: bool | None = None


def data_configs(data: DataWish, training: Training) -> list[dict[str, Any]]:
    """Returns the data config to train on, and the one that is held out where there is one.

    Raises:
        UsageError: the flags do not go together, or a file is not there.
    """
    name, files = located(data)
    prepared = _prepared(data, training)
    load = {
        "data_name": name,
        **({"subset": data.subset} if data.subset else {}),
        **({"data_files": files[0] if len(files) == 1 else list(files)} if files else {}),
    }
    return [
        {
            "name": which,
            "type": "HuggingfaceContainer",
            "load_dataset_config": {**load, **part},
            "pre_process_data_config": prepared,
            "dataloader_config": {"batch_size": 1},
        }
        for which, part in _parts(data.split or "train", training)
    ]


def _parts(split: str, training: Training) -> list[tuple[str, dict[str, Any]]]:
    """Returns which rows each data config takes; the same seed draws the same rows in both, so that none is in both."""
    size = training.eval_rows or training.eval_share
    drawn = {"test_size": size, "seed": training.seed}
    if training.eval_split:
        rows = {"train_test_split": {**drawn, "take": "test"}} if training.eval_rows else {}
        return [(TRAIN, {"split": split}), (HELD_OUT, {"split": training.eval_split, **rows})]
    if not size:
        return [(TRAIN, {"split": split})]
    return [
        (TRAIN, {"split": split, "train_test_split": {**drawn, "take": "train"}}),
        (HELD_OUT, {"split": split, "train_test_split": {**drawn, "take": "test"}}),
    ]


def _prepared(data: DataWish, training: Training) -> dict[str, Any]:
    if data.use_chat_template and data.text_template:
        raise UsageError("bad-usage", "--text_template and --chat_template do not go together", "give one of them")
    text = {"text_template": data.text_template} if data.text_template else {"text_cols": data.text_field or "text"}
    named = fields_of(data.text_template)
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


def survey_rows(data: DataWish, training: Training) -> Rows | None:
    """Returns what local files hold; None where nothing is known of them.

    Raises:
        UsageError: a file is not there, or cannot be read.
        InvalidRecipe: they have no such column or split, a row is no conversation, or too few rows are left.
    """
    whole = training.eval_split is None and data.split in (None, "train")
    return survey(
        located(data)[1],
        Read(
            columns_read(data, training.messages),
            [data.split, training.eval_split],
            training.messages if data.use_chat_template else None,
            (training.eval_rows or training.eval_share) if whole else 0,
        ),
    )


def training_steps(training: Training, held_out: bool) -> Steps:
    """Returns the pass that trains."""
    given = {
        "max_steps": training.max_steps, "num_train_epochs": training.epochs, "seed": training.seed,
        "per_device_train_batch_size": training.batch_size, "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps, "learning_rate": training.learning_rate,
        "logging_steps": _LOSSES,
    }  # fmt: skip
    train = {
        "type": METHODS[training.method],
        "train_data_config": TRAIN,
        **({"eval_data_config": HELD_OUT, "drop_held_out": True} if held_out else {}),
        "r": training.r,
        "alpha": training.alpha,
        **({"lora_dropout": training.dropout} if training.dropout is not None and training.method in _LOW_RANK else {}),
        **({"target_modules": list(training.target_modules)} if training.target_modules else {}),
        **({"torch_dtype": training.torch_dtype} if training.torch_dtype else {}),
        "training_args": {key: value for key, value in given.items() if value is not None},
    }
    return {TRAIN: train}


def training_decisions(
    data: DataWish, training: Training, configs: Sequence[Mapping[str, Any]], rows: Rows | None
) -> tuple[Decision, ...]:
    """Returns what was decided of a training, and why."""
    answers = "completion_only_loss" in configs[0]["pre_process_data_config"]
    split = str(configs[0]["load_dataset_config"]["split"])
    held, why = "none", "asked for"
    if len(configs) > 1:
        load = configs[1]["load_dataset_config"]
        size = load.get("train_test_split", {}).get("test_size")
        drawn = "" if size is None else f"{size} rows of " if size >= 1 else f"{size:.0%} of "
        held, why = f"{drawn}{load['split']}", "its loss is told before and after"
        why = f"drawn by the seed {training.seed}; {why}" if drawn else why
    lacking = ""
    if rows is not None and rows.incomplete:
        lacking = f"; {rows.incomplete} of {rows.count} rows lack a value and are left out"
    return (
        Decision("method", training.method, METHODS[training.method]),
        Decision("data", data.data_name or ", ".join(data.data_files), f"{split}{lacking}"),
        Decision("held out", held, why),
        Decision("loss", *(_ON_ANSWERS if answers else _ON_EVERYTHING)),
    )
