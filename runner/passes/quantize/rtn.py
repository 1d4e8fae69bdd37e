"""Quantises the weights of a language model that are still in floating point, each to the nearest code."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import give_back
from runner.models.quantized_checkpoint import EMBEDDING, HEAD
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.grid import round_to_nearest
from runner.passes.quantize.weight_only import Subject, WeightOnlyOptions, foresee_weights, leave, open_subject, spend_quantised


class RtnOptions(WeightOnlyOptions):
    """Options of Rtn."""

    embeds: bool = Field(
        False, description="quantise the embedding as well; one matrix with the head where the model ties them"
    )


def _apply(model: ModelHandle, options: RtnOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_in_place

    torch.set_num_threads(context.threads)
    subject = open_subject(model, options, context.output, load_in_place)
    names = [*subject.linears(), *_outer(subject, options)]
    context.say(f"rounding {len(names)} matrices")
    for name, scheme in [(name, subject.scheme(name, options)) for name in names]:
        weight: Any = subject.module.get_submodule(name).weight
        subject.keep(name, round_to_nearest(weight, scheme))
        give_back(weight)
    spend_quantised(subject, names, context.take_over())
    return leave(subject, context)


def _outer(subject: Subject, options: RtnOptions) -> list[str]:
    """Returns what is left to quantise of the head and the embedding, and unties them unless both become the same codes.

    Raises:
        InvalidRecipe: the model has no such module.
    """
    asked = [name for name, wanted in ((HEAD, options.lm_head), (EMBEDDING, options.embeds)) if wanted]
    there = {name for name, _ in subject.module.named_modules()}
    if lost := [name for name in asked if name not in there]:
        raise InvalidRecipe(
            Problem(
                "unknown-module",
                f"Rtn: {type(subject.module).__name__} has no {' and no '.join(lost)}",
                remedy="take lm_head and embeds out; those of a model that also sees stay in floating point",
            )
        )
    if subject.shared and HEAD in subject.matrices:
        return []
    if subject.shared and asked:
        subject.shared = len(asked) == 2 and subject.scheme(HEAD, options) == subject.scheme(EMBEDDING, options)
        if subject.shared:
            return [HEAD]
    return [name for name in asked if name not in subject.matrices]


PASS = Pass(
    name="Rtn",
    summary="Rounds the weights of a language model to 4 or 8 bits, those that an earlier pass left in floating point.",
    options=RtnOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    version=3,
    foresee=lambda options, outline, _: foresee_weights(options, outline),
)
