"""AWQ: scales the input channels of linear layers so that rounding hurts the channels that matter least, then rounds.

After J. Lin et al.: AWQ, activation-aware weight quantization for on-device LLM compression and acceleration (MLSys 2024).
A channel is multiplied in the weights that read it and divided in what writes it (a norm's weight, or the rows of the
projection before), which leaves the model's function as it is and moves the grid of codes. The strength is searched for
each set of linear layers with one input, by the error of the block that they stand in; then the range of each group of
weights is narrowed by the error of its products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import in_fp32
from runner.models.outline import Outline
from runner.models.quantized_checkpoint import HEAD, QuantizedMatrix, Scheme, quantization_of, write_weights
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext
from runner.passes.hidden_states import folder_for_states
from runner.passes.layer_walk import LayerAt, input_hessians, run_behind, walk_layers
from runner.passes.quantize.channel_scaling import Call, Channels, find_channels
from runner.passes.quantize.grid import Parts, fit_grid, nearest_codes, over_rows
from runner.passes.quantize.weight_only import Subject, WeightOnlyOptions, foresee_weights, leave, open_subject, with_head
from runner.recipe.config import DataConfig
from runner.targets.target import Target

if TYPE_CHECKING:
    import torch

_STRENGTHS = tuple(step / 8 for step in range(9))  # 0: no scaling; 1: as large as the channel's inputs
_WINDOWS = 2  # of the calibration text, that a block is run on for each strength
_TOLERANCE = 1e-3  # of a layer's output, that scaling may change by rounding in fp32


class AwqOptions(WeightOnlyOptions):
    """Options of Awq."""

    zero_point: bool | None = Field(None, description="the opposite of sym")
    duo_scaling: bool = Field(True, description="let the sizes of the weights temper the scales, not those of the inputs alone")
    modules_to_not_convert: list[str] = Field(
        default_factory=list, description="leave modules whose names contain one of these in floating point"
    )
    export_compatible: bool = Field(False, description="scale only; a later pass, such as Gptq or Rtn, quantises")
    data_config: str | DataConfig | None = Field(
        None,
        description="text to calibrate on: a name among data_configs, or itself; text that the model writes when not given",
    )

    retired: ClassVar[Mapping[str, str]] = {
        **WeightOnlyOptions.retired,
        "version": "codes are stored in one layout; the kernel is chosen where the model runs",
        "input_model_dtype": "weights are quantised in fp32",
    }
    renamed: ClassVar[Mapping[str, str]] = {"w_bit": "bits", "q_group_size": "group_size"}

    @model_validator(mode="before")
    @classmethod
    def _zero_point_says_sym(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("zero_point"), bool):
            return given
        if given.get("sym", not given["zero_point"]) == given["zero_point"]:
            raise ValueError("zero_point and sym contradict one another; give one of them")
        return {**given, "sym": not given["zero_point"]}


def _apply(model: ModelHandle, options: AwqOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_mapped, load_torch
    from runner.passes.finetune.whole_model import write_whole

    if options.export_compatible and quantization_of(model.folder):
        raise InvalidRecipe(
            Problem("already-quantized", "export_compatible scales floating-point weights alone", remedy="put Awq first")
        )
    torch.set_num_threads(context.threads)
    mapped = None if quantization_of(model.folder) else load_mapped(with_head(model))
    subject = open_subject(model, options, context.output, lambda one: mapped or load_torch(one))
    head_too = options.lm_head and not options.export_compatible and HEAD not in subject.matrices
    with torch.inference_mode():
        batches = calibration_windows(subject.module, options.data_config, context)
        context.say(f"calibrating on {sum(batch.numel() for batch in batches)} tokens")
        for layer in walk_layers(subject.module, batches, folder_for_states(subject.module, batches, context)):
            _treat_layer(subject, layer, options, mapped is not None)
            context.progress(layer.at + 1, layer.count)
        if options.export_compatible and mapped is not None:
            left = {name: one for name, one in mapped.state_dict().items() if name not in subject.shards.names}
            write_weights(left, {}, model.folder, context.output, subject.shards)
            return replace(model, folder=context.output)
        if options.export_compatible:
            write_whole(subject.module, model.folder, context.output)
            return replace(model, folder=context.output)
        if head_too:
            _quantize_head(subject, layer, batches, options)
    return leave(subject, context)


def _treat_layer(subject: Subject, layer: LayerAt, options: AwqOptions, mapped: bool) -> None:
    """Scales the channels of a decoder layer, then quantises its linear layers.

    The layer keeps its weights in floating point, so that the layers behind it are fitted to the model's own activations. A
    mapped one gets its unscaled ones back behind that: what is scaled has become codes, or is written.
    """
    stored = {name: one.dtype for name, one in layer.layer.state_dict(prefix=f"{layer.name}.").items()}
    linears = {
        name: module
        for name, module in subject.linears().items()
        if name.startswith(f"{layer.name}.") and not any(one in name for one in options.modules_to_not_convert)
    }
    schemes = {name: subject.scheme(name, options) for name in linears}
    in_codes = set(linears.values())

    def done_with(module: torch.nn.Module, parameter: str) -> bool:
        return options.export_compatible or (parameter == "weight" and module in in_codes)

    with in_fp32(layer.layer, done_with):
        _scale_and_round(subject, layer, linears, schemes, options)
        layer.outputs.extend(layer.run(states) for states in layer.inputs)
        if options.export_compatible and mapped:
            subject.shards.put(
                {name: one.to(stored[name]) for name, one in layer.layer.state_dict(prefix=f"{layer.name}.").items()}
            )


def _scale_and_round(
    subject: Subject,
    layer: LayerAt,
    linears: Mapping[str, torch.nn.Module],
    schemes: Mapping[str, Scheme],
    options: AwqOptions,
) -> None:
    hessians = {name: hessian for names, hessian in input_hessians(linears, layer.run, layer.inputs) for name in names}
    found, output = find_channels(layer)
    for channels in found:
        if set(channels.readers) & set(subject.matrices) or not set(channels.readers) & set(linears):
            continue
        scales = _best_scales(channels, schemes, hessians, options)
        channels.scale(scales)
        read = channels.read(scales)
        for hessian in {id(one): one for name in channels.readers if (one := hessians.get(name)) is not None}.values():
            hessian.div_(read).div_(read[:, None])
    _check_unchanged(layer, output)
    if not options.export_compatible:
        for name, linear in linears.items():
            subject.keep(name, _round_by_inputs(linear.weight, hessians[name], schemes[name]))


def _check_unchanged(layer: LayerAt, output: torch.Tensor) -> None:
    change = (layer.run(layer.inputs[0]) - output).norm() / output.norm()
    if not change < _TOLERANCE:
        raise RunFailed(
            "awq-not-equivalent",
            f"{layer.name} computes something else once its channels are scaled (relative change {float(change):.2g})",
            "use Gptq or Rtn for this architecture",
        )


# --- the search for scales -------------------------------------------------------------------------------------------


def _best_scales(
    channels: Channels, schemes: Mapping[str, Scheme], hessians: Mapping[str, torch.Tensor], options: AwqOptions
) -> torch.Tensor:
    """Returns the scales, [channels written], among the tried ones whose rounded weights change the block's output least."""
    import torch

    quantized = {name: linear for name, linear in channels.readers.items() if name in schemes}
    call = channels.block.of(_WINDOWS) if channels.block else None
    best = torch.ones_like(channels.written(channels.magnitude))
    least = torch.inf
    for scales in (best, *_candidates(channels, quantized, schemes, options)):
        read = channels.read(scales)
        rounded = {name: _rounded(linear.weight * read, schemes[name]).div_(read) for name, linear in quantized.items()}
        error = _block_error(call, quantized, rounded) if call else _product_error(quantized, rounded, hessians)
        if error < least:
            least, best = error, scales
    return best


def _candidates(
    channels: Channels, linears: Mapping[str, torch.nn.Linear], schemes: Mapping[str, Scheme], options: AwqOptions
) -> Iterator[torch.Tensor]:
    import torch

    inputs = channels.written(channels.magnitude).clamp(min=1e-4)
    weights = torch.ones_like(inputs)
    if options.duo_scaling:
        relative = torch.cat([_relative_size(linear.weight, schemes[name]) for name, linear in linears.items()])
        weights = channels.written(relative.mean(0)).clamp(min=1e-4)
    for strength in _STRENGTHS:
        scales = inputs**strength / (weights ** (1 - strength) if options.duo_scaling else 1)
        scales = scales.clamp(min=1e-4)
        yield scales / (scales.max() * scales.min()).sqrt()


def _relative_size(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Returns the absolute weights [rows, columns], each group by its largest."""
    blocks = weight.view(weight.shape[0], -1, scheme.group_size).abs()
    return (blocks / blocks.amax(-1, keepdim=True).clamp(min=1e-8)).view(weight.shape)


def _rounded(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Returns a weight rounded on the whole range of each group; what the search can afford for every strength."""
    import torch

    blocks = weight.view(weight.shape[0], -1, scheme.group_size)
    low, high = blocks.amin(-1, keepdim=True).clamp_(max=0), blocks.amax(-1, keepdim=True).clamp_(min=0)
    if scheme.symmetric:
        scale = high.maximum(-low).div_(scheme.middle - 1).clamp_(min=1e-8)
        zero = torch.full_like(scale, scheme.middle)
    else:
        scale = (high - low).div_(scheme.levels).clamp_(min=1e-8)
        zero = (-low / scale).round_()
    return (blocks / scale).add_(zero).round_().clamp_(0, scheme.levels).sub_(zero).mul_(scale).view(weight.shape)


def _block_error(call: Call, linears: Mapping[str, torch.nn.Linear], rounded: Mapping[str, torch.Tensor]) -> float:
    """Returns the squared error of a block's output when its linear layers have the rounded weights."""
    kept = {name: linear.weight.clone() for name, linear in linears.items()}
    for name, linear in linears.items():
        linear.weight.copy_(rounded[name])
    error = float((call.again() - call.output).square_().sum())
    for name, linear in linears.items():
        linear.weight.copy_(kept[name])
    return error


def _product_error(
    linears: Mapping[str, torch.nn.Linear], rounded: Mapping[str, torch.Tensor], hessians: Mapping[str, torch.Tensor]
) -> float:
    """Returns the squared error of the linear layers' products when they have the rounded weights."""
    total = 0.0
    for name, linear in linears.items():
        errors = rounded[name] - linear.weight
        total += float((errors @ hessians[name]).mul_(errors).sum())
    return total


# --- rounding --------------------------------------------------------------------------------------------------------


def _round_by_inputs(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> QuantizedMatrix:
    """Rounds on grids whose ranges are narrowed so that errors count by the size of the inputs that they meet."""
    importance = hessian.diagonal()
    importance = importance.clamp(min=float(importance.mean()) * 1e-4)

    def nearest(rows: torch.Tensor) -> Parts:
        scales, zeros = fit_grid(rows, scheme, importance)
        return nearest_codes(rows, scales, zeros, scheme.levels), scales, zeros

    codes, scales, zeros = over_rows(nearest, weight)
    return QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte())


def _quantize_head(subject: Subject, last: LayerAt, batches: Sequence[torch.Tensor], options: AwqOptions) -> None:
    """Quantises the head by what the last layer gives it; the layers before may have unscaled weights again."""
    head: Any = subject.module.get_submodule(HEAD)

    def run(at: int) -> Any:
        return run_behind(subject.module, last, last.outputs[at], batches[at])

    ((_, hessian),) = input_hessians({HEAD: head}, run, range(len(batches)))
    subject.shared = False
    subject.keep(HEAD, _round_by_inputs(head.weight, hessian, subject.scheme(HEAD, options)))


def _foresee(options: AwqOptions, outline: Outline | None, target: Target) -> Outline | None:
    after = foresee_weights(options, outline, lambda name: any(one in name for one in options.modules_to_not_convert))
    return outline if options.export_compatible else after


PASS = Pass(
    name="Awq",
    summary="Scales the channels of a language model's linear layers by their activations (AWQ), then rounds the weights.",
    options=AwqOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("data_config",),
    version=4,
    foresee=_foresee,
)
