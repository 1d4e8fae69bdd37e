"""What Gptq and Rtn share: their options, the modules that they quantise, and the folder that they leave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.adapter import ADAPTER_ATTRIBUTES, adapter_folder
from runner.models.files import link
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import same_place
from runner.models.outline import Outline
from runner.models.quantized_checkpoint import (
    EMBEDDING,
    HEAD,
    WHOLE_ROW,
    Checkpoint,
    QuantizedMatrix,
    Scheme,
    quantization_of,
    read_checkpoint,
    write_checkpoint,
)
from runner.models.sharded_weights import ShardedWeights, mapped_weights
from runner.models.spent_files import Inode, spend
from runner.passes.declaration import PassContext
from runner.recipe.config import Model
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch

Bits = Literal[4, 8]
GroupSize = Literal[-1, 16, 32, 64, 128, 256]
MIXED_PRECISION = "mixed_precision_info"  # the attribute that SelectiveMixedPrecision leaves
_GROUP_SIZES = (256, 128, 64, 32, 16)
_PATTERN = "re:"
_COMPARED = 1024  # rows at a time
_IN_SCHEME = {"sym": "symmetric"}  # an option's name -> the field of a scheme


class Override(Model):
    """What is different for some modules; None leaves what holds for the others."""

    bits: Bits | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None


class MixedPrecision(Model):
    """What an earlier step decided on the precision of modules.

    Attributes:
        default: for modules that have no entry of their own.
        overrides: by a module's name, or a regular expression that begins with re:.
    """

    default: Override = Override()
    overrides: dict[str, Override] = Field({})


class WeightOnlyOptions(PassOptions):
    """Options that Gptq and Rtn have in common."""

    bits: Bits = Field(4, description="bits of a weight")
    group_size: GroupSize = Field(
        128, description="weights of a row that share one scale; -1 for all of a row, a multiple of 16"
    )
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
        module: the model; its weights may lie in half precision in their memory-mapped files, or be quantised already.
        default: the scheme of modules without one of their own.
        matrices: the quantised weights by the names of their modules.
        shared: the embedding and the head are one matrix.
        shards: what has been written of the result.
        before: the weights in the files of a model that is quantised in part, by name.
    """

    model: ModelHandle
    module: torch.nn.Module
    default: Scheme
    matrices: dict[str, QuantizedMatrix]
    shared: bool
    shards: ShardedWeights
    before: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def keep(self, name: str, matrix: QuantizedMatrix) -> None:
        """Makes a matrix the weight of module `name`; it goes to the disk once there are enough of them."""
        self.matrices[name] = matrix
        written = self.shards.put(matrix.tensors(name))
        for one in (key.removesuffix(".qweight") for key in written if key.endswith(".qweight")):
            self.matrices[one] = QuantizedMatrix(
                self.matrices[one].scheme, written[f"{one}.qweight"], written[f"{one}.scales"], written.get(f"{one}.qzeros")
            )

    def scheme(self, name: str, options: WeightOnlyOptions) -> Scheme:
        """Returns how a pass with these options quantises the weight of module `name`.

        What an earlier step decided on mixed precision counts where the options leave something open: its overrides give way
        to the options' overrides, its default to what the options say themselves.

        Raises:
            InvalidRecipe: the group size does not divide the rows of the weight, or the earlier decision cannot be read.
        """
        asked = asked_scheme(name, options, mixed_precision_of(self.model))
        return fit_rows(asked, name, int(self.module.get_submodule(name).weight.shape[1]), self.model)

    def linears(self) -> dict[str, torch.nn.Module]:
        """Returns the linear layers of the decoder that are not quantised yet, by name."""
        import torch

        name, layers = decoder_layers(self.module)
        return {
            f"{name}.{below}": module
            for below, module in layers.named_modules()
            if isinstance(module, torch.nn.Linear) and f"{name}.{below}" not in self.matrices
        }


def asked_scheme(name: str, options: WeightOnlyOptions, mixed: MixedPrecision) -> Scheme:
    """Returns how the weight of module `name` is to be quantised, as far as options and an earlier step say it.

    Where steps are planned as a run, the earlier step's default stands in the options already, see `Pass.hands_on`.
    """
    own = Scheme(options.bits, options.group_size, options.sym)
    given = {_IN_SCHEME.get(key, key) for key in options.model_fields_set}
    open_ = {key: value for key, value in _set_values(mixed.default).items() if key not in given}
    asked = replace(own, **open_)
    for overrides in (mixed.overrides, options.overrides or {}):
        for key, override in overrides.items():
            if names_module(key, name):
                asked = replace(asked, **_set_values(override))
    return asked


def _set_values(override: Override) -> dict[str, Any]:
    return override.model_dump(exclude_none=True)


def names_module(key: str, name: str) -> bool:
    """Says whether an override's key, a name or a regular expression behind re:, means the module `name`."""
    return key == name or (key.startswith(_PATTERN) and re.fullmatch(key.removeprefix(_PATTERN), name) is not None)


def fit_rows(asked: Scheme, name: str, columns: int, model: ModelHandle) -> Scheme:
    """Returns the scheme for rows of so many columns: the asked one with the group size in columns.

    A tiny twin is narrower than the model it stands for, so its groups may be smaller than asked.

    Raises:
        InvalidRecipe: the group size does not divide the columns.
    """
    fit = _dividing(columns)
    if asked.group_size == WHOLE_ROW and fit:
        return replace(asked, group_size=columns)
    if asked.group_size in fit:
        return asked
    if "twin_of" in model.attributes and fit:
        return replace(asked, group_size=next((size for size in fit if size <= asked.group_size), fit[-1]))
    raise InvalidRecipe(_unfit(asked, name, columns, fit))


def foresee_rows(schemes: Mapping[str, Scheme], outline: Outline) -> None:
    """Makes sure that group sizes divide the rows of modules, by name, of a model of an outline.

    Raises:
        InvalidRecipe: some do not; of the modules alike one is named.
    """
    fit = _dividing(*(outline.rows[name] for name in schemes))
    unfit: dict[tuple[int, int], Problem] = {}
    for name, asked in schemes.items():
        columns = outline.rows[name]
        own = _dividing(columns)
        if asked.group_size not in own and not (asked.group_size == WHOLE_ROW and own):
            unfit.setdefault((asked.group_size, columns), _unfit(asked, name, columns, fit or own))
    if unfit:
        raise InvalidRecipe(*unfit.values())


def foresee_weights(
    options: WeightOnlyOptions, outline: Outline | None, left_out: Callable[[str], bool] = lambda _: False
) -> Outline | None:
    """Returns what a pass leaves of a model that quantises decoder, head and embedding as its options say.

    Args:
        options: the pass's.
        outline: what comes in.
        left_out: says of a module, by its name, that it stays in floating point.

    Raises:
        InvalidRecipe: a group size does not divide the rows of a module.
    """
    if outline is None:
        return None
    asked = {HEAD: options.lm_head, EMBEDDING: bool(getattr(options, "embeds", False))}
    names = [name for name in outline.rows if asked.get(name, True) and not left_out(name)]
    foresee_rows({name: asked_scheme(name, options, MixedPrecision()) for name in names}, outline)
    return replace(outline, rows={name: one for name, one in outline.rows.items() if name not in names}, quantised=True)


def _dividing(*columns: int) -> list[int]:
    return [size for size in _GROUP_SIZES if not any(one % size for one in columns)]


def _unfit(asked: Scheme, name: str, columns: int, fit: Sequence[int]) -> Problem:
    if asked.group_size == WHOLE_ROW:
        cause = f"the {columns} weights of a row of {name} are no multiple of {_GROUP_SIZES[-1]}, as every group must be"
    else:
        cause = f"group_size {asked.group_size} does not divide the {columns} weights of a row of {name}"
    return Problem(
        "group-size",
        cause,
        remedy=f"choose {' or '.join(map(str, fit))}" if fit else "quantise the ONNX model instead",
    )


def mixed_precision_of(model: ModelHandle) -> MixedPrecision:
    """Returns what an earlier step decided on mixed precision; nothing where there was none.

    Raises:
        InvalidRecipe: the model's attributes hold something else under that name.
    """
    try:
        return MixedPrecision.model_validate(model.attributes.get(MIXED_PRECISION) or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (MIXED_PRECISION, *first["loc"])))
        raise InvalidRecipe(
            Problem("mixed-precision", f"{place}: {first['msg']}", remedy="let SelectiveMixedPrecision write it")
        ) from error


def open_subject(
    model: ModelHandle, options: WeightOnlyOptions, folder: Path, load: Callable[[ModelHandle], torch.nn.Module]
) -> Subject:
    """Loads a Hugging Face model, quantised in part or not at all.

    Args:
        model: the model.
        options: how it is quantised.
        folder: an empty folder for the result.
        load: a function of `torch_source`.

    Raises:
        InvalidRecipe: an override names no module, or an earlier pass has left nothing to quantise.
    """
    module, shards = load(with_head(model)), ShardedWeights(folder)
    _check_overrides(module, options)
    if quantization_of(model.folder):
        found = read_checkpoint(model.folder)
        before = {**found.floats, **{key: one for name, it in found.matrices.items() for key, one in it.tensors(name).items()}}
        subject = Subject(model, module, found.default, dict(found.matrices), found.shared, shards, before)
        if not subject.linears() and not options.lm_head and not getattr(options, "embeds", False):
            cause = "an earlier pass has quantised all of the decoder's layers already"
            raise InvalidRecipe(
                Problem("nothing-to-quantise", cause, remedy="take this step out, or let it quantise the head too (lm_head)")
            )
        return subject
    tied = bool(getattr(module.config, "tie_word_embeddings", False))
    return Subject(model, module, Scheme(options.bits, options.group_size, options.sym), {}, tied, shards)


def with_head(model: ModelHandle) -> ModelHandle:
    """Returns the handle as the language model that its files hold, whatever it is used for; adapters stay off.

    Embedding models such as Qwen3-Embedding are published with their head, by which the builder knows them.
    """
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    causal = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    attributes = {key: value for key, value in model.attributes.items() if key not in ADAPTER_ATTRIBUTES}
    return replace(model, task="text-generation" if causal else model.task, attributes=attributes)


def _check_overrides(module: torch.nn.Module, options: WeightOnlyOptions) -> None:
    names = [name for name, one in module.named_modules() if getattr(one, "weight", None) is not None]
    problems = []
    for key in options.overrides or {}:
        if not any(names_module(key, name) for name in names):
            remedy = "name another module" if key.startswith(_PATTERN) else did_you_mean(key, names)
            problems.append(Problem("unknown-module", f"overrides: the model has no module '{key}'", remedy=remedy))
    if problems:
        raise InvalidRecipe(*problems)


def decoder_layers(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Returns the list of a language model's decoder layers and its name; a part that sees may have a list as long.

    Raises:
        InvalidRecipe: the model has no such list.
    """
    import torch

    config = module.config
    count = getattr(getattr(config, "text_config", config), "num_hidden_layers", None)
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module
    names = {id(below): name for name, below in module.named_modules()}
    for below in decoder.modules():
        if isinstance(below, torch.nn.ModuleList) and len(below) == count:
            return names[id(below)], below
    raise InvalidRecipe(
        Problem(
            "no-decoder", f"{type(module).__name__} has no list of decoder layers", remedy="quantise the ONNX model instead"
        )
    )


def leave(subject: Subject, context: PassContext) -> ModelHandle:
    """Writes what the subject has become into the output folder and returns its handle."""
    folder, source, floats = context.output, subject.model.folder, _floats(subject)
    before = mapped_weights(source) if context.outlasts and not subject.before else subject.before
    unchanged = [name for name, one in before.items() if name not in floats or _same_values(floats[name], one)]
    checkpoint = Checkpoint(subject.default, subject.matrices, floats, subject.shared)
    write_checkpoint(checkpoint, source, folder, subject.shards, unchanged, context.outlasts)
    carry_adapter(subject.model, folder)
    return replace(subject.model, folder=folder)


def _same_values(one: torch.Tensor, stored: torch.Tensor) -> bool:
    """Says whether a weight is the stored one, or that in a wider type."""
    import torch

    if same_place(one, stored):
        return True
    if one.shape != stored.shape or not one.is_floating_point() or stored.element_size() > one.element_size():
        return False
    pairs = zip(one.split(_COMPARED), stored.split(_COMPARED), strict=True) if one.ndim else [(one, stored)]
    return all(torch.equal(part, other.to(part.dtype)) for part, other in pairs)


def _floats(subject: Subject) -> dict[str, torch.Tensor]:
    """Returns the weights that stay in floating point, by name."""
    quantized = {f"{name}.weight" for name in subject.matrices}
    if subject.shared:
        quantized.add(f"{HEAD}.weight")
        if HEAD in subject.matrices:
            quantized.add(f"{EMBEDDING}.weight")
    return {
        name: tensor
        for name, tensor in subject.module.state_dict().items()
        if name not in quantized and tensor.device.type != "meta"
    }


def spend_quantised(subject: Subject, names: Iterable[str], files: Collection[Inode]) -> None:
    """Gives back the disk space of the weights of modules that are codes now, where nothing else reads them.

    Args:
        subject: has their codes.
        names: of the modules.
        files: see `PassContext.take_over`.
    """
    needed = {one.data_ptr() for one in _floats(subject).values()}
    for name in names:
        weight: Any = subject.module.get_submodule(name).weight
        if weight.data_ptr() not in needed:
            spend(weight.detach(), files)


def carry_adapter(model: ModelHandle, folder: Path) -> None:
    """Puts the adapter that lies beside a model, where it has one, beside what a pass made of the model."""
    adapter = adapter_folder(model)
    if adapter is not None and adapter.is_relative_to(model.folder):
        for file in adapter.rglob("*"):
            if file.is_file():
                link(file, folder / file.relative_to(model.folder))
