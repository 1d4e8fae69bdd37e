"""Weight-decomposed low-rank adapters: length and direction of a weight apart (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from dataclasses import replace

from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext
from runner.passes.finetune import lora
from runner.passes.finetune.options import LowRankOptions
from runner.passes.finetune.training import frozen_model, train_adapter


def _apply(model: ModelHandle, options: LowRankOptions, context: PassContext) -> ModelHandle:
    module = frozen_model(model, options, context)
    carry(model, context.output)
    config = lora.lora_config(model, options, dora=True)
    made = train_adapter(model, module, config, options, context)
    return made.with_attributes(adapter_type="dora")


PASS = replace(
    lora.PASS,
    name="DoRA",
    summary="Trains a low-rank adapter that learns length and direction of the weights apart.",
    apply=_apply,
)
