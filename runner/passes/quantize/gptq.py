"""GPTQ: quantises the weights of a language model column by column, each column making up for the errors before it.

After E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: GPTQ, accurate post-training quantization for generative pre-trained
transformers (ICLR 2023). The grids of all groups are fitted to the weights beforehand, errors weighed by the Hessian's
diagonal, so that the order of the columns is free and the codes need no index of groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from runner.errors import RunFailed
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import in_fp32
from runner.models.quantized_checkpoint import HEAD, QuantizedMatrix, Scheme
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext
from runner.passes.hidden_states import folder_for_states
from runner.passes.layer_walk import Hessians, input_hessians, walk_layers
from runner.passes.quantize.grid import Parts, fit_grid, over_rows
from runner.passes.quantize.weight_only import Subject, WeightOnlyOptions, decoder_layers, foresee_weights, leave, open_subject
from runner.recipe.config import DataConfig

if TYPE_CHECKING:
    import torch

_COLUMNS = 64  # errors of so many columns are passed on together to the columns behind them
_ROWS_A_THREAD = 512  # at least: a call of PyTorch on fewer takes as long, and threads wait for one another to make theirs


class GptqOptions(WeightOnlyOptions):
    """Options of Gptq."""

    data_config: str | DataConfig | None = Field(
        None,
        description="text to calibrate on: a name among data_configs, or itself; text that the model writes when not given",
    )
    damp_percent: float = Field(
        0.01, gt=0, lt=1, description="share of the Hessian's mean diagonal that is added to its diagonal"
    )
    desc_act: bool | None = Field(True, description="quantise the columns with the largest inputs first; null is true")

    retired: ClassVar[Mapping[str, str]] = {
        **WeightOnlyOptions.retired,
        **dict.fromkeys(
            ("layers_block_name", "outside_layer_modules", "inside_layer_modules"), "the decoder layers are found in the model"
        ),
        "static_groups": "the grids of all groups are always fitted beforehand",
        "true_sequential": "the matrices of a layer are calibrated together",
    }


def _apply(model: ModelHandle, options: GptqOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_to_run

    torch.set_num_threads(context.threads)
    subject = open_subject(model, options, context.output, load_to_run)
    with torch.inference_mode():
        batches = calibration_windows(subject.module, options.data_config, context)
        tokens = sum(batch.numel() for batch in batches)
        context.say(f"calibrating on {tokens} tokens")
        folder = folder_for_states(subject.module, batches, context)
        for done, total, hessians in _hessians(subject, batches, options, folder):
            _quantize(subject, hessians, options)
            context.progress(done, total)
    return leave(subject, context)


# --- Hessians --------------------------------------------------------------------------------------------------------


def _hessians(
    subject: Subject, batches: Sequence[torch.Tensor], options: GptqOptions, folder: Path | None
) -> Iterator[tuple[int, int, Hessians]]:
    """Yields what is quantised next, with its number of how many: decoder layers, then the head where it is asked for.

    A layer's inputs come from layers that are not quantised: their outputs fall out of the run that sums up the Hessians.
    With quantised ones the layers run twice, and the model comes out no better (SmolLM2-135M in 4 bits, published weights
    and moved ones: KL divergence 1 and 4 % lower with these, where the order of summation alone moves it by 3 %).
    """
    linears = subject.linears()
    head_too = int(options.lm_head and HEAD not in subject.matrices)
    total = len(decoder_layers(subject.module)[1]) + head_too
    for layer in walk_layers(subject.module, batches, folder):
        inner = {one: module for one, module in linears.items() if one.startswith(f"{layer.name}.")}
        with in_fp32(layer.layer):
            yield layer.at + 1, total, input_hessians(inner, layer.run, layer.inputs, layer.outputs)
    if head_too:
        head = subject.module.get_submodule(HEAD)
        yield total, total, input_hessians({HEAD: head}, lambda ids: subject.module(ids, use_cache=False), batches)


# --- solving ---------------------------------------------------------------------------------------------------------


def _quantize(subject: Subject, hessians: Hessians, options: GptqOptions) -> None:
    """Quantises the weights of modules."""
    import torch

    for names, hessian in hessians:
        schemes = {name: subject.scheme(name, options) for name in names}
        for scheme in dict.fromkeys(schemes.values()):
            alike = [name for name in names if schemes[name] == scheme]
            modules: list[Any] = [subject.module.get_submodule(name) for name in alike]
            subject.shared = subject.shared and HEAD not in alike
            matrix = gptq(
                torch.cat([one.weight for one in modules]), hessian, scheme, options.damp_percent, options.desc_act is not False
            )
            start = 0
            for name, module in zip(alike, modules, strict=True):
                stop = start + module.weight.shape[0]
                subject.keep(name, matrix.rows(start, stop))
                start = stop


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, damp: float = 0.01, descending: bool = True
) -> QuantizedMatrix:
    """Returns the weight quantised so that its products with the inputs behind the Hessian change least.

    Args:
        weight: float32 [rows, columns].
        hessian: float32 [columns, columns], the sum of x xᵀ over inputs x.
        scheme: how to quantise.
        damp: share of the mean diagonal that is added to the diagonal.
        descending: columns in order of falling diagonal; as they come otherwise.

    Raises:
        RunFailed: the Hessian stays singular however much it is damped.
    """
    import torch

    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=1e-8)
    importance = diagonal.clamp(min=float(mean) * 1e-4)
    order = diagonal.argsort(descending=True) if descending else torch.arange(weight.shape[1])
    passed_on = _inverse_factor(hessian, order, damp * mean)
    passed_on.div_(passed_on.diagonal().clone()[:, None])

    group = order // scheme.group_size

    def solve(rows: torch.Tensor) -> Parts:
        scales, zeros = fit_grid(rows, scheme, importance)
        weight, scale, zero = (one.T.contiguous() for one in (rows[:, order], scales[:, group], zeros[:, group]))
        return _solve(weight, scale, zero, passed_on, scheme.levels)[:, order.argsort()], scales, zeros

    codes, scales, zeros = over_rows(solve, weight, _ROWS_A_THREAD)
    return QuantizedMatrix.of_codes(scheme, codes, scales, zeros.byte())


def _inverse_factor(hessian: torch.Tensor, order: torch.Tensor, damp: torch.Tensor) -> torch.Tensor:
    """Returns the upper Cholesky factor of the inverse of the damped Hessian in an order; damps more where that fails in fp32.

    With H = R Rᵀ for an upper R, which is the lower factor of the Hessian read backwards, R⁻¹ is the factor that is wanted.
    """
    import torch

    last_first = order.flip(0)
    backwards = hessian[last_first[:, None], last_first]
    for _ in range(6):
        backwards.diagonal().copy_(hessian.diagonal()[last_first]).add_(damp)
        factor, failed = torch.linalg.cholesky_ex(backwards)
        if not failed:
            del backwards
            factor = factor.flip(0, 1)
            inverse = torch.eye(len(hessian))
            return torch.linalg.solve_triangular(factor, inverse, upper=True, out=inverse)
        damp = damp * 10
    raise RunFailed(
        "gptq-singular", "the inputs of a layer have no usable Hessian", "calibrate on a longer and more varied text"
    )


def _solve(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, passed_on: torch.Tensor, levels: int
) -> torch.Tensor:
    """Returns the codes, uint8 [rows, columns]; weight, scales and zeros are [columns, rows], so that a column is contiguous.

    A row of `passed_on` says how much of a column's error each column behind it takes.
    """
    import torch

    columns, rows = weight.shape
    codes = torch.empty(columns, rows)  # less their zeros, so that few and short operations fall on a column
    errors = torch.empty(_COLUMNS, rows)
    each = [one.unbind() for one in (weight, codes, scales, scales.reciprocal(), -zeros, levels - zeros)]
    error_of = errors.unbind()
    for start in range(0, columns, _COLUMNS):
        stop = min(start + _COLUMNS, columns)
        for at in range(start, stop):
            column, code, scale, inverse, least, most = (one[at] for one in each)
            torch.mul(column, inverse, out=code).round_().clamp_(least, most)
            error = torch.addcmul(column, code, scale, value=-1, out=error_of[at - start])
            weight[at + 1 : stop].addr_(passed_on[at, at + 1 : stop], error, alpha=-1)
        weight[stop:].addmm_(passed_on[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return codes.add_(zeros).to(torch.uint8).T


PASS = Pass(
    name="Gptq",
    summary="Quantises the linear layers of a language model with GPTQ, calibrated on text.",
    options=GptqOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("data_config",),
    version=3,
    foresee=lambda options, outline, _: foresee_weights(options, outline),
)
