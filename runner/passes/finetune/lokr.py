"""Adapters that are a Kronecker product of two smaller matrices (Yeh et al. 2023, arXiv:2309.14859)."""

from __future__ import annotations

from pydantic import Field

from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.passes.finetune.options import DATA_OPTIONS, ProductOptions
from runner.passes.finetune.training import frozen_model, peft_task, train_adapter


class LoKrOptions(ProductOptions):
    """Options of LoKr."""

    decompose_both: bool = Field(False, description="the smaller factor is a low-rank product as well")
    decompose_factor: int = Field(-1, ge=-1, description="size of the smaller factor; -1 makes both about square")
    rank_dropout_scale: bool = Field(False, description="scale up what rank_dropout leaves")


def _apply(model: ModelHandle, options: LoKrOptions, context: PassContext) -> ModelHandle:
    module = frozen_model(model, options, context)
    carry(model, context.output)
    from peft import LoKrConfig

    own = {name: getattr(options, name) for name in ("decompose_both", "decompose_factor", "rank_dropout_scale")}
    config = LoKrConfig(task_type=peft_task(model), **own, **options.peft_arguments())
    return train_adapter(model, module, config, options, context)


PASS = Pass(
    name="LoKr",
    summary="Trains an adapter that is a Kronecker product of two smaller matrices.",
    options=LoKrOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "peft", "accelerate"),
    data_options=DATA_OPTIONS,
    foresee=keeps_outline,
)
