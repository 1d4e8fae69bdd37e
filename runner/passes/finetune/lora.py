"""Low-rank adapters: to each chosen weight W a product B A of rank r is learnt (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import Any

from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.passes.finetune.options import DATA_OPTIONS, LowRankOptions
from runner.passes.finetune.training import frozen_model, known_targets, peft_task, train_adapter


def lora_config(model: ModelHandle, options: LowRankOptions, *, targets: list[str] | None = None, dora: bool = False) -> Any:
    """Returns peft's configuration of a LoRA adapter, or of a DoRA one.

    Args:
        model: the model that is adapted.
        options: those of the pass.
        targets: full names of the layers, where the options do not choose them.
        dora: learn the length of each column of the weight apart from its direction.
    """
    from peft import LoraConfig, LoraRuntimeConfig

    return LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets or known_targets(model, options),
        modules_to_save=options.modules_to_save,
        bias="none",
        use_dora=dora,
        task_type=peft_task(model),
        runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=options.ephemeral_gpu_offload),
    )


def _apply(model: ModelHandle, options: LowRankOptions, context: PassContext) -> ModelHandle:
    module = frozen_model(model, options, context)
    carry(model, context.output)
    return train_adapter(model, module, lora_config(model, options), options, context)


PASS = Pass(
    name="LoRA",
    summary="Trains a low-rank adapter over the frozen model.",
    options=LowRankOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "peft", "accelerate"),
    data_options=DATA_OPTIONS,
    foresee=keeps_outline,
)
