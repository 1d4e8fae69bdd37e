"""Adds an adapter to the weights of its base model."""

from __future__ import annotations

from runner.errors import InvalidRecipe, Problem
from runner.models.adapter import ADAPTER_ATTRIBUTES, merged
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.recipe.options import PassOptions


class MergeAdapterWeightsOptions(PassOptions):
    """MergeAdapterWeights has no options."""


def _apply(model: ModelHandle, options: MergeAdapterWeightsOptions, context: PassContext) -> ModelHandle:
    if not model.attributes.get("adapter_path"):
        raise InvalidRecipe(
            Problem(
                "no-adapter",
                "MergeAdapterWeights: the model has no adapter",
                remedy="put LoRA, DoRA, LoHa, LoKr or QLoRA before it, or set input_model.adapter_path",
            )
        )
    from runner.passes.finetune.whole_model import write_whole

    write_whole(merged(load_torch(model)), model.folder, context.output)
    attributes = {key: value for key, value in model.attributes.items() if key not in ADAPTER_ATTRIBUTES}
    return ModelHandle("hf", context.output, None, model.task, attributes)


PASS = Pass(
    name="MergeAdapterWeights",
    summary="Adds an adapter to the weights of its base model.",
    options=MergeAdapterWeightsOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "peft"),
    foresee=keeps_outline,
)
