"""Adapters that are an element-wise product of two low-rank products (Hyeon-Woo et al. 2021, arXiv:2108.06098)."""

from __future__ import annotations

from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.passes.finetune.options import DATA_OPTIONS, ProductOptions
from runner.passes.finetune.training import frozen_model, peft_task, train_adapter


def _apply(model: ModelHandle, options: ProductOptions, context: PassContext) -> ModelHandle:
    module = frozen_model(model, options, context)
    carry(model, context.output)
    from peft import LoHaConfig

    config = LoHaConfig(task_type=peft_task(model), **options.peft_arguments())
    return train_adapter(model, module, config, options, context)


PASS = Pass(
    name="LoHa",
    summary="Trains an adapter that is an element-wise product of two low-rank products.",
    options=ProductOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "peft", "accelerate"),
    data_options=DATA_OPTIONS,
    foresee=keeps_outline,
)
