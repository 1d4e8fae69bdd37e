"""Trains an adapter over a frozen model with transformers' trainer, on the target's device or the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, InvalidRecipe, Problem, RunFailed
from runner.models.adapter import ADAPTER_FOLDER, import_peft
from runner.models.handle import ModelHandle
from runner.passes.declaration import Batches, PassContext
from runner.passes.finetune.options import FinetuneOptions
from runner.recipe.config import DataConfig

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of positions that have no part in the loss
TRAINING_FILE = "adapter_training.json"  # beside the adapter: steps, examples, losses; see `train_adapter`
_CHECKPOINT_END = "complete"  # a file that is written when all the others of a checkpoint are
_TWIN = "twin_of"  # attribute of a tiny twin
_TWIN_STEPS = 2
_SEQUENCE_LABELS = ("text-classification", "sequence-classification")
# Hugging Face task -> peft's name of what is trained.
_PEFT_TASKS = {
    "text-generation": "CAUSAL_LM",
    "text-classification": "SEQ_CLS",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}

Example = dict[str, Any]


def check_trainable(model: ModelHandle) -> str:
    """Returns the task that the model is trained for.

    Raises:
        InvalidRecipe: it is not one that adapters are trained for, or the model has an adapter already.
    """
    task = (model.task or "text-generation").removesuffix("-with-past")
    if task not in _PEFT_TASKS:
        raise InvalidRecipe(
            Problem("unknown-task", f"adapters are not trained for '{task}'", remedy=f"known: {', '.join(_PEFT_TASKS)}")
        )
    if model.attributes.get("adapter_path"):
        raise InvalidRecipe(
            Problem("has-adapter", "the model has an adapter already", remedy="put MergeAdapterWeights before this pass")
        )
    return task


def peft_task(model: ModelHandle) -> str:
    """Returns peft's name of the task that the model is trained for."""
    return _PEFT_TASKS[check_trainable(model)]


def known_targets(model: ModelHandle, options: FinetuneOptions) -> list[str] | str | None:
    """Returns the layers that get an adapter: those asked for, else None (peft knows the architecture) or all-linear."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    if options.target_modules:
        return options.target_modules
    return None if model.attributes.get("model_type") in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING else "all-linear"


def frozen_model(model: ModelHandle, options: FinetuneOptions, context: PassContext) -> torch.nn.Module:
    """Returns the model with frozen weights in the type and on the device that it trains with."""
    import torch

    from runner.models.torch_source import load_torch

    check_trainable(model)
    import_peft()
    torch.set_num_threads(context.threads)
    module = load_torch(model).requires_grad_(False)
    if on_gpu(context):
        torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
        module = module.to("cuda", torch.bfloat16 if options.torch_dtype == "bfloat16" else torch.float32)
    elif options.torch_dtype != "float32":
        context.say(f"training in float32: {options.torch_dtype} is for GPUs")
    return module


def on_gpu(context: PassContext) -> bool:
    """Says whether the target's GPU is here to train on."""
    import torch

    return context.target.name == "cuda" and torch.cuda.is_available()


def train_adapter(
    model: ModelHandle, module: torch.nn.Module, config: Any, options: FinetuneOptions, context: PassContext
) -> ModelHandle:
    """Trains an adapter and writes it, in peft's format, to the folder `adapter` beside the base model.

    Args:
        model: where the base model comes from; its tokenizer made the data.
        module: the frozen model.
        config: peft's configuration of the adapter.
        options: those of the pass.
        context: its output folder holds the base model.

    Returns:
        The base model with the adapter. The adapter's first values, the dropout and the order of the examples follow
        `training_args.seed`; a tiny twin trains two steps only. Beside the adapter lies `TRAINING_FILE`, a JSON
        object: steps, examples, how many were left out, mean loss, held-out loss before and after.

    Raises:
        DataUnavailable: the data has no examples, no token ids or no labels.
        InvalidRecipe: `target_modules` names no layer of the model.
        RunFailed: the loss is not finite.
    """
    import peft
    import transformers

    arguments = options.training_args
    for sentence in arguments.why_unused():
        context.say(sentence)
    examples = _examples(model, options.train_data_config, context)
    held_out = _examples(model, options.eval_data_config, context) if options.eval_data_config else None
    all_examples = len(examples)
    if held_out and options.drop_held_out and _TWIN not in model.attributes:  # whose made-up rows are all the same
        examples = _others(examples, held_out, context)
    transformers.set_seed(arguments.seed)
    try:
        trained = peft.get_peft_model(module, config)
    except ValueError as error:
        raise InvalidRecipe(
            Problem("bad-adapter", f"peft refuses the adapter: {error}", remedy="check target_modules")
        ) from error
    trainable, total = trained.get_nb_trainable_parameters()
    context.say(f"training {trainable:,} of {total:,} weights on {len(examples)} examples")
    trainer = _trainer(trained, model, examples, held_out, options, context)
    checkpoint = _last_checkpoint(options, context)
    before = _loss_before(trainer, context) if held_out else None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if result.training_loss != result.training_loss:
        raise RunFailed("training-diverged", "the training loss is not a number", "lower training_args.learning_rate")
    context.say(f"trained {result.global_step} steps, mean loss {result.training_loss:.3f}")
    after = trainer.evaluate()["eval_loss"] if held_out else None
    if before is not None:
        context.say(f"loss on {len(held_out or ())} held-out examples: {before:.3f} -> {after:.3f}")
    _save(trained, context)
    told = {
        "steps": result.global_step,
        "examples": len(examples),
        "left_out": all_examples - len(examples),
        "loss": result.training_loss,
        "held_out_loss": {"before": before, "after": after},
    }
    (context.output / ADAPTER_FOLDER / TRAINING_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    kind = trained.peft_config["default"].peft_type.lower()
    return ModelHandle(
        "hf", context.output, None, model.task, {**model.attributes, "adapter_path": ADAPTER_FOLDER, "adapter_type": kind}
    )


def _last_checkpoint(options: FinetuneOptions, context: PassContext) -> Path | None:
    """Returns the newest whole checkpoint of an interrupted training; clears what is not to be gone on from."""
    if context.kept is None:
        return None
    if not options.training_args.resume_from_checkpoint:
        shutil.rmtree(context.kept, ignore_errors=True)
    found = [path for path in context.kept.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    whole = [path for path in found if (path / _CHECKPOINT_END).is_file()]
    for path in set(found) - set(whole):
        shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _loss_before(trainer: Any, context: PassContext) -> float:
    """Returns the held-out loss of the untrained adapter, measured once however often the training is interrupted."""
    file = context.kept / "loss_before.json" if context.kept else None
    if file is not None and file.is_file():
        return float(json.loads(file.read_text(encoding="utf-8")))
    loss = float(trainer.evaluate()["eval_loss"])
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(loss), encoding="utf-8")
        fresh.replace(file)
    return loss


def _save(trained: Any, context: PassContext) -> None:
    folder = context.output / ADAPTER_FOLDER
    trained.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None  # it lies one folder up, wherever that is
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _trainer(
    trained: Any,
    model: ModelHandle,
    examples: Sequence[Example],
    held_out: Sequence[Example] | None,
    options: FinetuneOptions,
    context: PassContext,
) -> Any:
    import transformers

    latest: dict[str, str] = {}

    class Teller(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begun = state.global_step
            context.progress(begun, state.max_steps, f"going on from step {begun}" if begun else "the training begins")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            context.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            named = {"loss": "loss", "eval_loss": "held-out loss"}
            new = {name: f"{name} {float(logs[key]):.3f}" for key, name in named.items() if logs and key in logs}
            if new and state.global_step:
                latest.update(new)
                context.progress(state.global_step, state.max_steps, ", ".join(latest.values()))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _CHECKPOINT_END).touch()

    trainer = transformers.Trainer(
        model=trained,
        args=transformers.TrainingArguments(**_trainer_arguments(trained, model, bool(held_out), options, context)),
        train_dataset=list(examples),
        eval_dataset=list(held_out) if held_out else None,
        data_collator=_collate,
        callbacks=[Teller()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _trainer_arguments(
    trained: Any, model: ModelHandle, evaluates: bool, options: FinetuneOptions, context: PassContext
) -> dict[str, Any]:
    asked = options.training_args
    given = {
        name: value
        for name, value in asked.model_dump(exclude={"unused", "resume_from_checkpoint"}).items()
        if value is not None
    }
    ratio = given.pop("warmup_ratio")
    given.setdefault("warmup_steps", ratio)  # a number below one is a share of all steps
    if _TWIN in model.attributes:
        context.say(f"training {_TWIN_STEPS} steps only: the model is a tiny twin")
        given["max_steps"] = min(asked.max_steps or _TWIN_STEPS, _TWIN_STEPS)
    if not evaluates:
        given["eval_strategy"] = "no"
    given["gradient_checkpointing"] = asked.gradient_checkpointing and trained.supports_gradient_checkpointing
    gpu = on_gpu(context)
    return {
        **given,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "output_dir": str(context.kept or context.scratch / "trainer"),
        "use_cpu": not gpu,
        "fp16": gpu and options.torch_dtype == "float16",
        "bf16": gpu and options.torch_dtype == "bfloat16",
        "save_strategy": asked.save_strategy if context.kept else "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": gpu,
    }


def _examples(model: ModelHandle, named: str | DataConfig | None, context: PassContext) -> list[Example]:
    """Returns one example a row of the data's batches, padding cut off, with labels."""
    given: Any = named.model_dump(mode="json") if isinstance(named, DataConfig) else named
    task = check_trainable(model)
    found = [row for inputs, labels in _labelled(context.data(given)) for row in _rows(inputs, labels, task)]
    if not found:
        raise DataUnavailable(
            f"the data to train on ({_told(named)}) has no examples", "check the data config's split or files"
        )
    return found


def _others(examples: list[Example], held_out: Sequence[Example], context: PassContext) -> list[Example]:
    """Returns the examples whose tokens are not those of a held-out one."""
    known = {one["input_ids"].tobytes() for one in held_out}
    kept = [one for one in examples if one["input_ids"].tobytes() not in known]
    if not kept:
        raise DataUnavailable("every example to train on is held out as well", "name another split, or hold out fewer")
    if len(kept) < len(examples):
        context.say(f"{len(examples) - len(kept)} examples are left out, since the same text is held out")
    return kept


def _told(named: str | DataConfig | None) -> str:
    return named.name if isinstance(named, DataConfig) else str(named)


def _labelled(data: Batches) -> Iterator[tuple[dict[str, Any], Any]]:
    from runner.data.batches import Batches as Opened

    if isinstance(data, Opened):
        return data.labelled()
    return ((inputs, None) for inputs in data)


def _rows(inputs: dict[str, Any], labels: Any, task: str) -> Iterator[Example]:
    import numpy as np

    if "input_ids" not in inputs:
        raise DataUnavailable("the data to train on has no input_ids", "let its pre-processing tokenize a text")
    ids = np.asarray(inputs["input_ids"])
    mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids)))
    given = inputs.get("labels", labels)
    answers = None if given is None else np.asarray(given)
    if answers is not None and task == "text-generation" and answers.shape != ids.shape:
        answers = None  # a class beside a text says nothing of its next token
    if answers is None and task != "text-generation":
        raise DataUnavailable(
            f"the data to train on has no labels, which '{task}' needs", "name label_col in its pre-processing"
        )
    for at, kept in enumerate(mask != 0):
        label = ids[at] if answers is None else answers[at]
        yield {
            "input_ids": ids[at][kept],
            "attention_mask": mask[at][kept],
            "labels": label if task in _SEQUENCE_LABELS else label[kept],
        }


def _collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Returns one batch; shorter sequences are filled up on the right, where attention and loss leave them out."""
    import torch

    def padded(name: str, fill: int) -> torch.Tensor:
        rows = [torch.as_tensor(one[name], dtype=torch.long) for one in examples]
        if not rows[0].ndim:
            return torch.stack(rows)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": padded("attention_mask", 0),
        "labels": padded("labels", IGNORED),
    }
