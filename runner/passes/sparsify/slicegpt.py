"""SliceGPT: narrows the hidden states of a language model to their principal components.

After S. Ashkboos et al.: SliceGPT, compress large language models by deleting rows and columns (ICLR 2024). The paper rotates
each block's hidden states in its own way and keeps a matrix on every skip connection, for which transformers has no class.
Here all blocks share one rotation, found by a principal component analysis of what all norms see, so that the result is a
model of the same class with a smaller `hidden_size` that everything else loads. At the same width it loses more than the
paper's.

A norm divides by the size of the hidden states, which slicing shrinks: each norm keeps as its weight the mean ratio between
its output before and after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import quantization_of
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.hadamard import rotation
from runner.passes.residual_stream import Stream, free_gains, open_stream, set_parameter, turn, unchanged
from runner.recipe.config import DataConfig
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch


class SliceGptOptions(PassOptions):
    """Options of SliceGPT."""

    sparsity: float = Field(0.0, ge=0, lt=1, description="share of the hidden states' width that is cut off")
    round_interval: int = Field(
        8, gt=0, description="the width that stays is a multiple of this, and of the number of heads, as transformers asks"
    )
    final_orientation: Literal["random", "pca"] = Field(
        "random",
        description="pca leaves the components in falling order; random mixes them, which spares quantisation the outliers",
    )
    seed: int = Field(42, description="of the random orientation")
    calibration_data_config: str | DataConfig | None = Field(
        None,
        description="text to calibrate on: a name among data_configs, or itself; text that the model writes when not given",
    )

    retired: ClassVar[Mapping[str, str]] = {
        "calibration_nsamples": "8000 tokens are read",
        "calibration_batch_size": "the batches are chosen here",
    }


def _apply(model: ModelHandle, options: SliceGptOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_torch
    from runner.passes.finetune.whole_model import write_whole

    if quantization_of(model.folder):
        raise InvalidRecipe(Problem("quantised-already", "SliceGPT slices floating-point weights", remedy="put it first"))
    torch.set_num_threads(context.threads)
    module: Any = load_torch(model)
    full = int(module.get_input_embeddings().weight.shape[1])
    step = math.lcm(options.round_interval, module.config.num_attention_heads)
    width = int(full * (1 - options.sparsity) + 1e-6) // step * step
    if not width:
        raise InvalidRecipe(
            Problem(
                "sliced-away",
                f"sparsity {options.sparsity} leaves no multiple of {step} (round_interval, heads) of a width of {full}",
                remedy="lower one of them",
            )
        )
    with torch.inference_mode():
        batches = calibration_windows(module, options.calibration_data_config, context)
        context.say(f"calibrating on {sum(batch.numel() for batch in batches)} tokens")
        stream = open_stream(module, "SliceGPT")
        with unchanged(module, batches[0], "SliceGPT"):
            components = _components(module, stream, batches)
            free_gains(module, stream)
            turn(stream, components)
        kept = _slice(module, stream, batches, width)
        if options.final_orientation == "random":
            turn(stream, rotation(width, "random", torch.Generator().manual_seed(options.seed)))
        context.say(f"hidden_size {full} -> {width}, which keeps {kept:.1%} of what the norms see")
    _narrow_config(module.config, width, full)
    write_whole(module, model.folder, context.output)
    return replace(model, folder=context.output)


def _components(module: Any, stream: Stream, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the principal components of what all norms see, the largest first: float64 [width, width]."""
    import torch

    covariance = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for _, states in _norm_inputs(module, stream, batches):
        covariance += (states.T @ states).double()
    components: torch.Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return components


def _norm_inputs(module: Any, stream: Stream, batches: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields the place of each norm and what it sees, divided by its size: [tokens, width]."""
    seen: list[tuple[int, torch.Tensor]] = []

    def note(at: int) -> Any:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            states = args[0].reshape(-1, args[0].shape[-1])
            seen.append((at, states * states.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()))

        return hook

    hooks = [norm.module.register_forward_pre_hook(note(at)) for at, norm in enumerate(stream.norms)]
    for batch in batches:
        module(batch, use_cache=False)
        yield from seen
        seen.clear()
    for hook in hooks:
        hook.remove()


def _slice(module: Any, stream: Stream, batches: Sequence[torch.Tensor], width: int) -> float:
    """Keeps the first `width` components; returns the share of the norms' input that they hold."""
    import torch

    full = stream.width
    ratios: dict[int, list[torch.Tensor]] = {at: [] for at in range(len(stream.norms))}
    for at, states in _norm_inputs(module, stream, batches):
        ratios[at].append(states[:, :width].square().sum(-1) / full)
    turn(stream, torch.eye(full, width, dtype=torch.float64))
    for linear in (*stream.writers, *(reader for norm in stream.norms for reader in norm.readers)):
        linear.out_features, linear.in_features = linear.weight.shape
    kept = []
    for at, norm in enumerate(stream.norms):
        shares = torch.cat(ratios[at])
        kept.append(float(shares.mean()))
        gain = float(shares.sqrt().mean()) * (full / width) ** 0.5
        set_parameter(norm.module, "weight", torch.full((width,), gain - norm.offset))
    return sum(kept) / len(kept)


def _narrow_config(config: Any, width: int, full: int) -> None:
    config.head_dim = getattr(config, "head_dim", None) or full // config.num_attention_heads
    config.hidden_size = width


PASS = Pass(
    name="SliceGPT",
    summary="Narrows the hidden states of a language model to their principal components (SliceGPT with one rotation).",
    options=SliceGptOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("calibration_data_config",),
)
