"""Decides which modules of a language model get more bits than the others. The passes that quantise follow the decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from runner.errors import InvalidRecipe, Problem
from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import give_back
from runner.models.outline import Outline
from runner.models.quantized_checkpoint import EMBEDDING, HEAD, Scheme, quantization_of
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext
from runner.passes.hidden_states import folder_for_states
from runner.passes.quantize.sensitivity import Rivals, divergence_sensitivity, weight_sensitivity
from runner.passes.quantize.weight_only import (
    MIXED_PRECISION,
    Bits,
    GroupSize,
    decoder_layers,
    fit_rows,
    foresee_rows,
    with_head,
)
from runner.recipe.config import DataConfig
from runner.recipe.options import PassOptions
from runner.targets.target import Target

if TYPE_CHECKING:
    import torch

Algorithm = Literal[
    "k_quant_last", "k_quant_down", "k_quant_mixed", "kld_gradient", "snr", "snr_relative", "iqe", "iqe_relative"
]
_BY_PLACE = ("k_quant_last", "k_quant_down", "k_quant_mixed")
# Names that later versions of Olive give to the choices by place.
_LATER_NAMES = {
    "high_precision_lm_head": "k_quant_last",
    "high_precision_mlp_down": "k_quant_down",
    "high_precision_mlp_down_qkv": "k_quant_mixed",
}
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "W_pack")
_FEED_FORWARD_OUTPUTS = ("down_proj", "fc2", "dense_4h_to_h")
_WINDOWS = 8  # of 256 tokens that the divergence is measured on


class SelectiveMixedPrecisionOptions(PassOptions):
    """Options of SelectiveMixedPrecision."""

    algorithm: Algorithm = Field(
        description="by place: k_quant_last (the head), k_quant_down (and the down projections of the outer layers and of "
        "every third between), k_quant_mixed (and their query, key and value projections); by harm: kld_gradient (to the "
        "outputs), snr, snr_relative, iqe, iqe_relative (to the weights)"
    )
    bits: Bits = Field(4, description="bits of most weights")
    group_size: GroupSize = Field(
        128, description="weights of a row that share one scale; -1 for all of a row, a multiple of 16"
    )
    sym: bool = Field(False, description="quantise without zero points")
    high_bits: Bits = Field(8, description="bits of the weights that are harmed most")
    high_group_size: GroupSize | None = Field(None, description="group_size of those; the same by default")
    high_sym: bool | None = Field(None, description="sym of those; the same by default")
    ratio: float | None = Field(None, gt=0, lt=1, description="share of the weights that keep `bits`; needed to choose by harm")
    data_config: str | DataConfig | None = Field(
        None,
        description="text that kld_gradient measures on: a name among data_configs, or itself; text that the model writes when "
        "not given",
    )

    retired: ClassVar[Mapping[str, str]] = {
        "kld_memory_mode": "one layer of the model is held in fp32, and the gradient of one module at a time",
    }

    @field_validator("algorithm", mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        return _LATER_NAMES.get(given, given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _ratio_is_given(self) -> SelectiveMixedPrecisionOptions:
        if self.algorithm not in _BY_PLACE and self.ratio is None:
            raise ValueError(f"algorithm {self.algorithm} needs ratio, the share of the weights that keep {self.bits} bits")
        return self


def _apply(model: ModelHandle, options: SelectiveMixedPrecisionOptions, context: PassContext) -> ModelHandle:
    if quantization_of(model.folder):
        raise InvalidRecipe(
            Problem("quantised-already", "SelectiveMixedPrecision: this model is quantised already", remedy="put it first")
        )
    if options.algorithm in _BY_PLACE:
        module = _outline(model)
        high: dict[str, Any] = {"bits": options.high_bits}
        chosen = list(_chosen_by_place(module, options.algorithm))
    else:
        module, high = _weights(model, options), _told(_high(options))
        chosen = _chosen_by_harm(module, model, options, context)
    tied = bool(getattr(module.config, "tie_word_embeddings", False))
    if tied and HEAD in chosen:
        chosen.append(EMBEDDING)
    context.say(f"{len(chosen)} modules get {options.high_bits} bits")
    carry(model, context.output, graph=True)
    decided = {"default": _default(options), "overrides": {name: dict(high) for name in chosen}}
    return replace(model, folder=context.output).with_attributes(**{MIXED_PRECISION: decided})


def _default(options: SelectiveMixedPrecisionOptions) -> dict[str, Any]:
    """Returns the scheme of most weights, as far as it is decided here."""
    return {"bits": options.bits} if options.algorithm in _BY_PLACE else _told(_low(options))


def _hands_on(options: SelectiveMixedPrecisionOptions) -> dict[str, Any]:
    """Returns the same as options of the passes that quantise."""
    return {"sym" if name == "symmetric" else name: value for name, value in _default(options).items()}


def _low(options: SelectiveMixedPrecisionOptions) -> Scheme:
    return Scheme(options.bits, options.group_size, options.sym)


def _high(options: SelectiveMixedPrecisionOptions) -> Scheme:
    group_size = options.group_size if options.high_group_size is None else options.high_group_size
    return Scheme(options.high_bits, group_size, options.sym if options.high_sym is None else options.high_sym)


def _told(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}


def _outline(model: ModelHandle) -> Any:
    """Returns the model without its weights: names and shapes."""
    import torch
    from transformers import AutoConfig

    from runner.models.torch_source import auto_class

    trusted = bool(model.attributes.get("trust_remote_code", False))
    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=trusted)
    auto = auto_class(with_head(model).task or "feature-extraction")
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trusted)


def _weights(model: ModelHandle, options: SelectiveMixedPrecisionOptions) -> Any:
    """Returns the model with its weights where they lie; it computes in fp32 where the answers are looked at."""
    from runner.models.torch_source import load_in_place, load_to_run

    return (load_to_run if options.algorithm == "kld_gradient" else load_in_place)(with_head(model))


def _linears(module: Any) -> dict[str, torch.nn.Linear]:
    """Returns the linear layers of the decoder and the head, by name."""
    import torch

    layers, _ = decoder_layers(module)
    return {
        name: one
        for name, one in module.named_modules()
        if isinstance(one, torch.nn.Linear) and (name == HEAD or name.startswith(f"{layers}."))
    }


# --- by place --------------------------------------------------------------------------------------------------------


def _chosen_by_place(module: Any, algorithm: str) -> Iterator[str]:
    """Yields modules by the rule of llama.cpp's K-quants.

    The head; and of the outer eighths of the layers and of every third between, the down projections and the projections to
    queries, keys and values.
    """
    linears = _linears(module)
    if HEAD in linears:
        yield HEAD
    ends = {"k_quant_last": (), "k_quant_down": _FEED_FORWARD_OUTPUTS}.get(
        algorithm, (*_ATTENTION_INPUTS, *_FEED_FORWARD_OUTPUTS)
    )
    layers, found = decoder_layers(module)
    count = len(found)
    for at in range(count):
        if at < count / 8 or at >= 7 * count / 8 or (at - count // 8) % 3 == 2:
            yield from (name for name in linears if name.startswith(f"{layers}.{at}.") and name.rpartition(".")[2] in ends)


# --- by harm ---------------------------------------------------------------------------------------------------------


def _chosen_by_harm(
    module: Any, model: ModelHandle, options: SelectiveMixedPrecisionOptions, context: PassContext
) -> list[str]:
    """Returns the modules with the most harm a weight, up to the share of the weights that need not keep few bits."""
    import torch

    torch.set_num_threads(context.threads)
    linears = _linears(module)
    schemes = {
        name: Rivals(*(fit_rows(one, name, linear.in_features, model) for one in (_low(options), _high(options))))
        for name, linear in linears.items()
    }
    together = _together(linears)
    sizes = {names: sum(linears[name].weight.numel() for name in names) for names in together}
    if options.algorithm == "kld_gradient":
        batches = calibration_windows(module, options.data_config, context)
        windows = [ids for batch in batches for ids in batch.split(1)][:_WINDOWS]
        context.say(f"measuring the divergence on {sum(ids.numel() for ids in windows)} tokens")
        folder = folder_for_states(module, windows, context, len(decoder_layers(module)[1]) + 1)
        falls = divergence_sensitivity(module, schemes, windows, folder)
        harm = {names: sum(falls[name] for name in names) / sizes[names] for names in together}
    else:
        harm = {}
        for done, names in enumerate(together, 1):
            weights = [linears[name].weight for name in names]
            harm[names] = weight_sensitivity(weights, schemes[names[0]], options.algorithm)  # type: ignore[arg-type]
            for weight in weights:
                give_back(weight)
            context.progress(done, len(together))
    chosen: list[str] = []
    left = (1 - (options.ratio or 0)) * sum(sizes.values())
    for names in sorted(together, key=lambda one: harm[one], reverse=True):
        if left <= 0:
            break
        chosen += names
        left -= sizes[names]
    return [name for name in linears if name in set(chosen)]


def _together(linears: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the modules by those that a graph computes in one product: query, key and value projections of a layer."""
    sets: dict[str, list[str]] = {}
    for name in linears:
        above, _, last = name.rpartition(".")
        sets.setdefault(above + ".qkv" if last in _ATTENTION_INPUTS else name, []).append(name)
    return [tuple(names) for names in sets.values()]


def _foresee(options: SelectiveMixedPrecisionOptions, outline: Outline | None, target: Target) -> Outline | None:
    """What is chosen by place says nothing of groups; what is chosen by harm says it of modules that are not known yet."""
    if outline is None or options.algorithm in _BY_PLACE:
        return outline
    names = [name for name in outline.rows if name not in (HEAD, EMBEDDING)]
    for scheme in (_low(options), _high(options)):
        foresee_rows(dict.fromkeys(names, scheme), outline)
    return None


PASS = Pass(
    name="SelectiveMixedPrecision",
    summary="Decides which modules of a language model get more bits; Gptq, Awq and Rtn follow.",
    options=SelectiveMixedPrecisionOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers"),
    data_options=("data_config",),
    version=2,
    foresee=_foresee,
    hands_on=_hands_on,
)
