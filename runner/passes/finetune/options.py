"""Options that the fine-tuning passes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from runner.recipe.config import DataConfig, Model
from runner.recipe.options import PassOptions

DATA_OPTIONS = ("train_data_config", "eval_data_config")

# Arguments of transformers' trainer that would act outside the step's own folder or speak of the machine.
_UNUSED = {
    "output_dir": "checkpoints lie in the cache",
    "overwrite_output_dir": "checkpoints lie in the cache",
    "report_to": "losses are told as they come and kept in the step's record",
    "deepspeed": "one device trains",
    "fp16": "torch_dtype says it",
    "bf16": "torch_dtype says it",
    "tf32": "allow_tf32 says it",
    "remove_unused_columns": "the data config says what the model reads",
    "group_by_length": "train_sampling_strategy says it",
    "dataloader_num_workers": "the examples are in memory",
    "ddp_find_unused_parameters": "one device trains",
}


class TrainingArguments(Model):
    """Arguments of transformers' trainer; what is None is left to it."""

    max_steps: int | None = Field(None, ge=1, description="optimiser steps; goes before num_train_epochs")
    num_train_epochs: float = Field(3.0, gt=0, description="passes over the training data")
    per_device_train_batch_size: int = Field(8, ge=1, description="examples a forward pass")
    per_device_eval_batch_size: int = Field(8, ge=1, description="examples a forward pass of the evaluation")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes an optimiser step")
    gradient_checkpointing: bool = Field(True, description="compute activations twice instead of keeping them")
    learning_rate: float = Field(2e-4, gt=0, description="of the optimiser")
    lr_scheduler_type: str = Field("constant", description="course of the learning rate")
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="further arguments of the schedule")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps in which a schedule with warm-up rises")
    warmup_steps: int | None = Field(None, ge=0, description="the same in steps; goes before warmup_ratio")
    optim: str | None = Field(None, description="optimiser; AdamW by default")
    weight_decay: float | None = Field(None, ge=0, description="of AdamW")
    adam_beta1: float | None = Field(None, ge=0, lt=1, description="of AdamW")
    adam_beta2: float | None = Field(None, ge=0, lt=1, description="of AdamW")
    adam_epsilon: float | None = Field(None, gt=0, description="of AdamW")
    max_grad_norm: float | None = Field(None, ge=0, description="gradients are clipped to this norm")
    label_smoothing_factor: float | None = Field(None, ge=0, lt=1, description="smoothing of the labels")
    neftune_noise_alpha: float | None = Field(None, gt=0, description="noise on the embeddings while training")
    logging_steps: float = Field(500, gt=0, description="steps between two losses that are told; below 1 a share of all")
    logging_first_step: bool | None = Field(None, description="tell the loss of the first step")
    eval_strategy: Literal["no", "steps", "epoch"] | None = Field(
        None, description="when eval_data_config is measured besides before and after the training"
    )
    eval_steps: float | None = Field(None, gt=0, description="steps between two evaluations")
    resume_from_checkpoint: bool = Field(True, description="an interrupted training goes on from its last checkpoint")
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="when checkpoints are written")
    save_steps: float = Field(20, gt=0, description="steps between two checkpoints")
    save_total_limit: int | None = Field(1, ge=1, description="checkpoints that are kept until the training ends")
    seed: int = Field(42, ge=0, description="of the adapter's first values, the dropout and the order of the examples")
    data_seed: int | None = Field(None, ge=0, description="of the order of the examples alone")
    dataloader_drop_last: bool | None = Field(None, description="leave an incomplete last batch out")
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] | None = Field(
        None, description="order of the examples"
    )
    unused: dict[str, Any] = Field(
        {}, description=f"arguments that do nothing here; {', '.join(sorted(_UNUSED))} are put here where they are given"
    )

    @model_validator(mode="before")
    @classmethod
    def _sorted_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {**given, **(given.get("extra_args") or {})}
        given.pop("extra_args", None)
        if "evaluation_strategy" in given:
            given.setdefault("eval_strategy", given.pop("evaluation_strategy"))
        if given.get("resume_from_checkpoint", ...) is None:
            del given["resume_from_checkpoint"]
        if given.get("max_steps") == -1:
            del given["max_steps"]
        unused = {key: given.pop(key) for key in list(given) if key in _UNUSED}
        return {**given, "unused": {**(given.get("unused") or {}), **unused}} if unused else given

    def why_unused(self) -> list[str]:
        """Returns a sentence for each argument that was given and does nothing."""
        return [f"training_args.{name} does nothing here: {_UNUSED.get(name, 'unknown')}" for name in self.unused]


class FinetuneOptions(PassOptions):
    """Options of every pass that trains an adapter."""

    train_data_config: str | DataConfig = Field(description="data to train on")
    eval_data_config: str | DataConfig | None = Field(None, description="data whose loss is told before and after the training")
    drop_held_out: bool = Field(False, description="do not train on examples that eval_data_config has as well")
    training_args: TrainingArguments = Field(TrainingArguments(), description="how to train")
    r: int = Field(64, ge=1, description="rank of the adapter")
    alpha: float = Field(16, gt=0, description="the adapter's product is scaled by alpha / r")
    target_modules: list[str] | str | None = Field(
        None,
        description="layers that get an adapter: ends of their names, or one regular expression, or all-linear; "
        "what peft knows of the architecture by default",
    )
    modules_to_save: list[str] | None = Field(None, description="layers trained as a whole and saved with the adapter")
    torch_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="type of the frozen weights on a GPU (float16 trains in mixed precision); a CPU trains in float32",
    )
    allow_tf32: bool = Field(True, description="TF32 products on a GPU")

    retired: ClassVar[Mapping[str, str]] = {"device_map": "the device of the target trains where it is there, else the CPU"}

    @model_validator(mode="before")
    @classmethod
    def _defaults_for_none(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("training_args", ...) is None:
            return {key: value for key, value in given.items() if key != "training_args"}
        return given


class LowRankOptions(FinetuneOptions):
    """Options of LoRA and DoRA."""

    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's inputs that are dropped while training")
    ephemeral_gpu_offload: bool = Field(
        False, description="compute large first values on the GPU though the model is elsewhere"
    )


class ProductOptions(FinetuneOptions):
    """Options of LoHa and LoKr."""

    rank_dropout: float = Field(0.0, ge=0, lt=1, description="share of the ranks that are dropped while training")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="share of the layers whose adapter is dropped while training")
    use_effective_conv2d: bool = Field(True, description="decompose the kernels of convolutions as well")
    exclude_modules: list[str] | str | None = Field(None, description="layers that get no adapter")
    init_weights: bool = Field(True, description="first values that leave the model as it is")
    layers_to_transform: list[int] | None = Field(None, description="numbers of the layers that get adapters; all by default")
    layers_pattern: list[str] | None = Field(None, description="name of the list of layers that layers_to_transform counts")
    rank_pattern: dict[str, int] = Field({}, description="ranks of single layers, by name or regular expression")
    alpha_pattern: dict[str, float] = Field({}, description="alphas of single layers, by name or regular expression")

    retired: ClassVar[Mapping[str, str]] = {
        **FinetuneOptions.retired,
        "lora_dropout": "rank_dropout and module_dropout are this adapter's",
        "ephemeral_gpu_offload": "only LoRA's first values take long to compute",
    }

    @model_validator(mode="after")
    def _pattern_has_layers(self) -> Self:
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts, which is not given")
        return self

    def peft_arguments(self) -> dict[str, Any]:
        """Returns what peft's LoHaConfig and LoKrConfig have in common."""
        names = (
            "r", "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d", "exclude_modules", "init_weights",
            "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "target_modules": self.target_modules or "all-linear"}
