"""SparseGPT: sets weights of a language model to zero, the remaining ones of a row making up for those that go.

After E. Frantar, D. Alistarh: SparseGPT, massive language models can be accurately pruned in one-shot (ICML 2023). The files
keep their size: zeros gain where the weights are compressed, or where a kernel knows the pattern of zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import in_fp32
from runner.models.quantized_checkpoint import quantization_of, write_weights
from runner.models.sharded_weights import ShardedWeights
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext, keeps_outline
from runner.passes.hidden_states import folder_for_states
from runner.passes.layer_walk import LayerAt, input_hessians, walk_layers
from runner.recipe.config import DataConfig
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

Pattern = tuple[int, int]


class SparseGptOptions(PassOptions):
    """Options of SparseGPT."""

    sparsity: float | Pattern = Field(
        description="share of the weights of a layer that become zero, or [n, m]: n of every m weights in a row do"
    )
    blocksize: int = Field(128, gt=0, description="columns among which the weights that go are chosen at a time")
    percdamp: float = Field(0.01, gt=0, le=1, description="share of the Hessian's mean diagonal that is added to its diagonal")
    min_layer: int | None = Field(None, ge=0, description="prune from this layer on")
    max_layer: int | None = Field(None, ge=0, description="prune up to the layer before this one")
    layer_name_filter: str | list[str] | None = Field(
        None, description="prune only modules whose names contain this, or one of these"
    )
    data_config: str | DataConfig | None = Field(
        None,
        description="text to calibrate on: a name among data_configs, or itself; text that the model writes when not given",
    )

    retired: ClassVar[Mapping[str, str]] = {"device": "weights are pruned on the CPU"}

    @field_validator("sparsity")
    @classmethod
    def _is_a_share(cls, given: float | Pattern) -> float | Pattern:
        if isinstance(given, tuple):
            if not 0 < given[0] < given[1]:
                raise ValueError(f"[n, m] must have 0 < n < m, not {list(given)}")
        elif not 0 <= given < 1:
            raise ValueError(f"must be at least 0 and less than 1, not {given}")
        return given


def _apply(model: ModelHandle, options: SparseGptOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_mapped, load_torch
    from runner.passes.finetune.whole_model import write_whole

    if quantization_of(model.folder):
        raise InvalidRecipe(Problem("already-quantized", "SparseGPT prunes floating-point weights", remedy="put it first"))
    torch.set_num_threads(context.threads)
    mapped = load_mapped(model)
    module: Any = mapped or load_torch(model)
    shards = ShardedWeights(context.output)
    zeros = total = 0
    with torch.inference_mode():
        batches = calibration_windows(module, options.data_config, context)
        context.say(f"calibrating on {sum(batch.numel() for batch in batches)} tokens")
        for layer in walk_layers(module, batches, folder_for_states(module, batches, context)):
            if not (options.min_layer or 0) <= layer.at < (layer.count if options.max_layer is None else options.max_layer):
                continue
            stored = layer.layer.state_dict(prefix=f"{layer.name}.")
            with in_fp32(layer.layer):
                for name, weight in _prune_layer(layer, options).items():
                    zeros += int((weight == 0).sum())
                    total += weight.numel()
                    if mapped:
                        shards.put({f"{name}.weight": weight.to(stored[f"{name}.weight"].dtype)})
                layer.outputs.extend(layer.run(states) for states in layer.inputs)
            context.progress(layer.at + 1, layer.count)
    if not total:
        raise InvalidRecipe(
            Problem(
                "nothing-to-prune",
                "min_layer, max_layer and layer_name_filter leave no weights to prune",
                remedy="widen them",
            )
        )
    context.say(f"{zeros / total:.1%} of {total} weights in the pruned layers are zero")
    if mapped:
        left = {name: one for name, one in module.state_dict().items() if name not in shards.names}
        write_weights(left, {}, model.folder, context.output, shards)
    else:
        write_whole(module, model.folder, context.output)
    return replace(model, folder=context.output)


def _prune_layer(layer: LayerAt, options: SparseGptOptions) -> dict[str, torch.Tensor]:
    """Prunes the matrices of a layer that are asked for, and returns their weights by the names of their modules."""
    asked = options.layer_name_filter or [""]
    parts = [asked] if isinstance(asked, str) else asked
    modules: dict[str, Any] = {
        name: module
        for name, module in layer.layer.named_modules(prefix=layer.name)
        if _is_linear(module) and any(part in name for part in parts)
    }
    for names, hessian in input_hessians(modules, layer.run, layer.inputs):
        upper = inverse_factor(hessian, options.percdamp)
        for name in names:
            weight = modules[name].weight
            columns_first = weight if _is_transposed(modules[name]) else weight.T
            columns_first.copy_(prune(columns_first, upper, options.sparsity, options.blocksize))
    return {name: module.weight for name, module in modules.items()}


def _is_linear(module: torch.nn.Module) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: torch.nn.Module) -> bool:
    """Returns whether it is GPT-2's linear layer, which keeps its weight as [columns, rows]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def prune(weight: torch.Tensor, upper: torch.Tensor, sparsity: float | Pattern, blocksize: int = 128) -> torch.Tensor:
    """Returns the weight with zeros in it, the others changed so that its products with the inputs change least.

    Args:
        weight: float32 [columns, rows]; a column meets one input channel.
        upper: the `inverse_factor` of the inputs' Hessian, [columns, columns].
        sparsity: share of zeros in each block of columns, or (n, m): n zeros among every m weights of a row.
        blocksize: columns of a block; a multiple of m is made of it.
    """
    import torch

    weight = weight.clone(memory_format=torch.contiguous_format)
    columns, rows = weight.shape
    pattern, share = (sparsity, 0.0) if isinstance(sparsity, tuple) else (None, sparsity)
    step = -(-blocksize // pattern[1]) * pattern[1] if pattern else blocksize
    pivots = upper.diagonal()
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block, errors = weight[start:stop], torch.zeros(stop - start, rows)
        if pattern:
            mask = torch.zeros_like(block, dtype=torch.bool)
        else:
            mask = _least(_losses(block, pivots[start:stop]).view(1, -1), share).view(block.shape)
        for at in range(stop - start):
            if pattern and at % pattern[1] == 0:
                few = block[at : at + pattern[1]]
                losses = _losses(few, pivots[start + at : start + at + len(few)])
                mask[at : at + len(few)] = _least(losses.T, pattern[0] / pattern[1]).T
            errors[at] = torch.where(mask[at], block[at], 0).div_(pivots[start + at])
            block[at].masked_fill_(mask[at], 0)
            block[at + 1 :].addr_(upper[start + at, start + at + 1 : stop], errors[at], alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return weight


def _losses(weight: torch.Tensor, pivots: torch.Tensor) -> torch.Tensor:
    """Returns how much the products' squared error grows for each weight, [columns, rows], that goes."""
    return (weight / pivots[:, None]).square_()


def _least(losses: torch.Tensor, share: float) -> torch.Tensor:
    """Returns a mask of a share, rounded down, of the elements of each row: those with the least losses."""
    import torch

    count = int(losses.shape[1] * share + 1e-6)
    chosen = losses.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(losses, dtype=torch.bool).scatter_(1, chosen, value=True)


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Returns the upper Cholesky factor of the inverse of a Hessian, float32 [columns, columns].

    Args:
        hessian: the sum of x xᵀ over inputs x.
        damp: share of the mean diagonal that is added to the diagonal; ten times as much where that does not do in fp32.

    Raises:
        RunFailed: the Hessian stays singular.
    """
    import torch

    mean = hessian.diagonal().mean().clamp(min=1e-8)
    for share in (damp * 10**power for power in range(6)):
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
    raise RunFailed(
        "sparsegpt-singular", "the inputs of a layer have no usable Hessian", "calibrate on a longer and more varied text"
    )


PASS = Pass(
    name="SparseGPT",
    summary="Sets a share of a language model's weights to zero and lets the others make up for it (SparseGPT).",
    options=SparseGptOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("data_config",),
    foresee=keeps_outline,
)
