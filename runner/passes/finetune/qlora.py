"""Low-rank adapters over weights of four bits (Dettmers et al. 2023, arXiv:2305.14314), on any device.

The frozen linear layers are held in four bits by our own code, so that no GPU and no package of kernels is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from runner.errors import InvalidRecipe, Problem
from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import quantization_of
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.passes.finetune.lora import lora_config
from runner.passes.finetune.options import DATA_OPTIONS, LowRankOptions
from runner.passes.finetune.training import frozen_model, train_adapter

if TYPE_CHECKING:
    import torch


_BITSANDBYTES_OPTIMISERS = ("paged_", "adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "rmsprop_bnb", "ademamix")


class QLoraOptions(LowRankOptions):
    """Options of QLoRA."""

    quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="the sixteen values: nf4 quantiles of a normal distribution, fp4 floats"
    )
    double_quant: bool = Field(False, description="hold the scales of the blocks in eight bits as well")
    save_quant_config: bool = Field(
        True,
        description="write the base model with the rounded weights that the adapter was trained on; "
        "false links the original weights",
    )

    retired: ClassVar[Mapping[str, str]] = {
        **LowRankOptions.retired,
        "compute_dtype": "weights are spread out to torch_dtype",
    }

    @model_validator(mode="after")
    def _own_optimiser(self) -> QLoraOptions:
        named = self.training_args.optim or ""
        if named.startswith(_BITSANDBYTES_OPTIMISERS):
            raise ValueError(
                f"the optimiser '{named}' needs bitsandbytes, which is not used here; leave training_args.optim out"
            )
        return self


def _apply(model: ModelHandle, options: QLoraOptions, context: PassContext) -> ModelHandle:
    if quantization_of(model.folder):
        raise InvalidRecipe(
            Problem("quantised-already", "QLoRA: the weights are quantised already", remedy="use LoRA, which trains over them")
        )
    module = frozen_model(model, options, context)
    names = _hold(module, options)
    context.say(f"holding {len(names)} layers in {options.quant_type}")
    if options.save_quant_config:
        _write_rounded(module, model, context)
    else:
        carry(model, context.output)
    return train_adapter(model, module, lora_config(model, options, targets=names), options, context)


def _hold(module: torch.nn.Module, options: QLoraOptions) -> list[str]:
    """Holds every linear layer except the head in four bits; returns their names."""
    import torch

    from runner.passes.finetune.four_bit import hold_in_four_bits

    head: Any = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    linears = {name: one for name, one in module.named_modules() if isinstance(one, torch.nn.Linear) and one is not head}
    kept = set(options.modules_to_save or ())
    chosen = {name: one for name, one in linears.items() if name.rpartition(".")[2] not in kept}
    for linear in chosen.values():
        hold_in_four_bits(linear, options.quant_type, options.double_quant)
    return list(chosen)


def _write_rounded(module: torch.nn.Module, model: ModelHandle, context: PassContext) -> None:
    from torch.nn.utils import parametrize

    from runner.passes.finetune.whole_model import write_whole

    state = {name: one for name, one in module.state_dict().items() if ".parametrizations." not in name}
    state |= {
        f"{name}.weight": one.weight for name, one in module.named_modules() if parametrize.is_parametrized(one, "weight")
    }
    write_whole(module, model.folder, context.output, state)


PASS = Pass(
    name="QLoRA",
    summary="Trains a low-rank adapter over the frozen model in four bits.",
    options=QLoraOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "peft", "accelerate"),
    data_options=DATA_OPTIONS,
    foresee=keeps_outline,
)
