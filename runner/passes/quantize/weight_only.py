"""What Gptq and Rtn share: their options, the modules that they quantise, and the folder that they leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    QuantizedMatrix,
    Scheme,
    quantization_of,
    read_checkpoint,
    write_checkpoint,
)
from runner.recipe.config import Model
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch

Bits = Literal[4, 8]
GroupSize = Literal[16, 32, 64, 128, 256]
_GROUP_SIZES = (256, 128, 64, 32, 16)
_PATTERN = "re:"


class Override(Model):
    """What is different for some modules; None leaves what holds for the others."""

    bits: Bits | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None


class WeightOnlyOptions(PassOptions):
    """Options that Gptq and Rtn have in common."""

    bits: Bits = Field(4, description="bits of a weight")
    group_size: GroupSize = Field(128, description="weights of a row that share one scale")
    sym: bool = Field(False, description="quantise without zero points")
    lm_head: bool = Field(False, description="quantise the head as well")
    overrides: dict[str, Override] | None = Field(
        None,
        description="bits, group_size or symmetric of single modules, by their names in the transformers model "
        "or by regular expressions that begin with re:",
    )

    retired: ClassVar[Mapping[str, str]] = {
        "device": "weights are quantised on the CPU",
        "quantize_vision": "vision towers stay in floating point",
    }


@dataclass
class Subject:
    """A language model that is being quantised.

    Attributes:
        model: where it comes from.
        module: the model in fp32; what is quantised already has its quantised values.
        default: the scheme of modules without one of their own.
        matrices: the quantised weights by the names of their modules.
        shared: the embedding and the head are one matrix.
    """

    model: ModelHandle
    module: torch.nn.Module
    default: Scheme
    matrices: dict[str, QuantizedMatrix]
    shared: bool

    def scheme(self, name: str, options: WeightOnlyOptions) -> Scheme:
        """Returns how a pass with these options quantises the weight of module `name`.

        Raises:
            InvalidRecipe: the group size does not divide the rows of the weight.
        """
        asked = Scheme(options.bits, options.group_size, options.sym)
        for key, override in (options.overrides or {}).items():
            if key == name or (key.startswith(_PATTERN) and re.fullmatch(key.removeprefix(_PATTERN), name)):
                asked = replace(asked, **override.model_dump(exclude_none=True))
        columns = int(self.module.get_submodule(name).weight.shape[1])
        if columns % asked.group_size == 0:
            return asked
        fit = [size for size in _GROUP_SIZES if columns % size == 0]
        if "twin_of" in self.model.attributes and fit:
            return replace(asked, group_size=next((size for size in fit if size <= asked.group_size), fit[-1]))
        raise InvalidRecipe(
            Problem(
                "group-size",
                f"group_size {asked.group_size} does not divide the {columns} weights of a row of {name}",
                remedy=f"choose {' or '.join(map(str, fit))}" if fit else f"leave {name} out",
            )
        )

    def linears(self) -> dict[str, torch.nn.Module]:
        """Returns the linear layers of the decoder that are not quantised yet, by name."""
        import torch

        name, layers = decoder_layers(self.module)
        return {
            f"{name}.{below}": module
            for below, module in layers.named_modules()
            if isinstance(module, torch.nn.Linear) and f"{name}.{below}" not in self.matrices
        }


def open_subject(model: ModelHandle, options: WeightOnlyOptions) -> Subject:
    """Loads a Hugging Face model, quantised in part or not at all.

    Raises:
        InvalidRecipe: an override names no module.
    """
    from runner.models.torch_source import load_torch

    module = load_torch(model)
    _check_overrides(module, options)
    if quantization_of(model.folder):
        found = read_checkpoint(model.folder)
        return Subject(model, module, found.default, dict(found.matrices), found.shared)
    tied = bool(getattr(module.config, "tie_word_embeddings", False))
    return Subject(model, module, Scheme(options.bits, options.group_size, options.sym), {}, tied)


def _check_overrides(module: torch.nn.Module, options: WeightOnlyOptions) -> None:
    names = [name for name, one in module.named_modules() if getattr(one, "weight", None) is not None]
    problems = []
    for key in options.overrides or {}:
        pattern = key.removeprefix(_PATTERN)
        if key not in names and not (key != pattern and any(re.fullmatch(pattern, name) for name in names)):
            remedy = "name another module" if key != pattern else did_you_mean(key, names)
            problems.append(Problem("unknown-module", f"overrides: the model has no module '{key}'", remedy=remedy))
    if problems:
        raise InvalidRecipe(*problems)


def decoder_layers(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Returns the list of a language model's decoder layers and its name.

    Raises:
        InvalidRecipe: the model has no such list.
    """
    import torch

    config = module.config
    count = getattr(getattr(config, "text_config", config), "num_hidden_layers", None)
    for name, below in module.named_modules():
        if isinstance(below, torch.nn.ModuleList) and len(below) == count:
            return name, below
    raise InvalidRecipe(
        Problem(
            "no-decoder", f"{type(module).__name__} has no list of decoder layers", remedy="quantise the ONNX model instead"
        )
    )


def leave(subject: Subject, folder: Path) -> ModelHandle:
    """Writes what the subject has become into `folder` and returns its handle."""
    quantized = {f"{name}.weight" for name in subject.matrices}
    if subject.shared:
        quantized.add(f"{HEAD}.weight")
        if HEAD in subject.matrices:
            quantized.add(f"{EMBEDDING}.weight")
    floats = {name: tensor for name, tensor in subject.module.state_dict().items() if name not in quantized}
    write_checkpoint(Checkpoint(subject.default, subject.matrices, floats, subject.shared), subject.model.folder, folder)
    return replace(subject.model, folder=folder)
