"""SliceGPT: narrows the hidden states of a language model to their principal components.

After S. Ashkboos et al.: SliceGPT, compress large language models by deleting rows and columns (ICLR 2024). The paper rotates
each block's hidden states in its own way and keeps a matrix on every skip connection, for which transformers has no class.
Here all blocks share one rotation, found by a principal component analysis of what all norms see, so that the result is a
model of the same class with a smaller `hidden_size` that everything else loads. At the same width it loses more than the
paper's.

A norm divides by the size of the hidden states, which slicing shrinks: each norm keeps as its weight the mean ratio between
its output before and after.

The model is walked twice, layer by layer, on what its whole layers give: for the components, and to slice and write each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import in_fp32
from runner.models.quantized_checkpoint import quantization_of
from runner.passes.calibration_text import calibration_windows
from runner.passes.declaration import Pass, PassContext
from runner.passes.hidden_states import HiddenStates, folder_for_states
from runner.passes.layer_walk import LayerAt, walk_layers
from runner.passes.quantize.hadamard import rotation
from runner.passes.residual_stream import Norm, Stream, check_change, open_stream, set_parameter, turn_reader, turn_writer
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

    from runner.models.torch_source import load_to_run
    from runner.passes.finetune.whole_model import WrittenInParts

    if quantization_of(model.folder):
        raise InvalidRecipe(Problem("quantised-already", "SliceGPT slices floating-point weights", remedy="put it first"))
    torch.set_num_threads(context.threads)
    module: Any = load_to_run(model)
    full = int(module.get_input_embeddings().weight.shape[1])
    width = _width(options, full, module.config.num_attention_heads)
    with torch.inference_mode():
        batches = calibration_windows(module, options.calibration_data_config, context)
        context.say(f"calibrating on {sum(batch.numel() for batch in batches)} tokens")
        folder = folder_for_states(module, batches, context)
        stream = open_stream(module, "SliceGPT")
        components = _components(module, stream, batches, context, folder)
        orientation = torch.eye(width, dtype=torch.float64)
        if options.final_orientation == "random":
            orientation = rotation(width, "random", torch.Generator().manual_seed(options.seed))
        written = WrittenInParts(module, model.folder, context.output)
        slicing = _Slicing(components, orientation)
        shares: list[float] = []
        for layer, (norms, writers) in zip(walk_layers(module, batches, folder), stream.layers, strict=True):
            shares += slicing.slice(layer, norms, writers)
            written.put(layer.layer, layer.name)
            _empty(layer.layer)
            context.progress(layer.count + layer.at + 1, 2 * layer.count)
        head = module.get_output_embeddings()
        shares.append(slicing.slice_ends(stream, head, layer.outputs, context.scratch))
        kept = sum(shares) / len(shares)
    context.say(f"hidden_size {full} -> {width}, which keeps {kept:.1%} of what the norms see")
    _narrow_config(module.config, width, full)
    written.finish()
    return replace(model, folder=context.output)


def _width(options: SliceGptOptions, full: int, heads: int) -> int:
    """Returns the width that stays.

    Raises:
        InvalidRecipe: nothing stays.
    """
    step = math.lcm(options.round_interval, heads)
    width = int(full * (1 - options.sparsity) + 1e-6) // step * step
    if not width:
        raise InvalidRecipe(
            Problem(
                "sliced-away",
                f"sparsity {options.sparsity} leaves no multiple of {step} (round_interval, heads) of a width of {full}",
                remedy="lower one of them",
            )
        )
    return width


def _components(
    module: Any, stream: Stream, batches: Sequence[torch.Tensor], context: PassContext, folder: Path | None
) -> torch.Tensor:
    """Returns the principal components of what all norms see, the largest first: float64 [width, width]."""
    import torch

    covariance = torch.zeros(stream.width, stream.width, dtype=torch.float64)

    def add(_: int, states: torch.Tensor) -> None:
        covariance.add_(states.T @ states)

    for layer, (norms, _) in zip(walk_layers(module, batches, folder), stream.layers, strict=True):
        with in_fp32(layer.layer):
            _run_and_see(layer, norms, add)
        context.progress(layer.at + 1, 2 * layer.count)
    for states in layer.outputs:
        add(0, _by_size(states))
    components: torch.Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return components


def _run_and_see(layer: LayerAt, norms: Sequence[Norm], see: Callable[[int, torch.Tensor], None]) -> None:
    """Runs a layer over its inputs, and tells what each of its norms sees, by its place, each [tokens, width] by its size."""

    def note(at: int) -> Any:
        return lambda _, args: see(at, _by_size(args[0]))

    hooks = [norm.module.register_forward_pre_hook(note(at)) for at, norm in enumerate(norms)]
    layer.outputs.extend(layer.run(states) for states in layer.inputs)
    for hook in hooks:
        hook.remove()


def _by_size(states: torch.Tensor) -> torch.Tensor:
    states = states.reshape(-1, states.shape[-1])
    return states * states.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()


@dataclass(frozen=True)
class _Slicing:
    """Turns what touches the hidden states, and cuts it.

    Attributes:
        components: float64 [width, width], the largest first.
        orientation: what those that stay are turned by, float64 [new width, new width].
    """

    components: torch.Tensor
    orientation: torch.Tensor

    @property
    def width(self) -> int:
        """Returns how many components stay."""
        return len(self.orientation)

    def slice(self, layer: LayerAt, norms: Sequence[Norm], writers: Sequence[Any]) -> list[float]:
        """Slices a layer that its inputs have been kept of; puts what it gave before into its outputs.

        Returns:
            The share that is kept of what each norm sees.

        Raises:
            RunFailed: the layer computes something else when it is turned.
        """
        import torch

        seen: list[list[torch.Tensor]] = [[] for _ in norms]
        with in_fp32(layer.layer):
            _run_and_see(layer, norms, lambda at, states: seen[at].append(self._shares(states)))
        for norm in norms:
            gain = norm.module.weight.float() + norm.offset
            for reader in norm.readers:
                turn_reader(reader, self.components, gain)
            set_parameter(norm.module, "weight", torch.full_like(gain, 1 - norm.offset))
        for writer in writers:
            turn_writer(writer, self.components)
        matrix = self.components.float()
        check_change(layer.run(layer.inputs[0] @ matrix), layer.outputs[0] @ matrix, layer.name, "SliceGPT")
        cut = torch.nn.functional.pad(self.orientation, (0, 0, 0, len(self.components) - self.width))
        for norm in norms:
            for reader in norm.readers:
                turn_reader(reader, cut)
        for writer in writers:
            turn_writer(writer, cut)
        return [self._narrow(norm, torch.cat(shares)) for norm, shares in zip(norms, seen, strict=True)]

    def slice_ends(self, stream: Stream, head: Any, states: HiddenStates, folder: Path) -> float:
        """Slices the embedding and the head, and the norm between the layers and the head.

        Args:
            stream: what touches the hidden states.
            head: the model's, which may share the embedding's weight; it gets one of its own.
            states: what the last layer gives.
            folder: takes the pages of large weights.

        Returns:
            The share that is kept of what the norm sees.
        """
        import torch

        norm = stream.norms[-1]
        gain = norm.module.weight.float() + norm.offset
        cut = self.components[:, : self.width] @ self.orientation
        turn_reader(head, cut, gain, folder)  # an embedding that is tied keeps the weight that was
        turn_reader(stream.embedding, cut, folder=folder)
        return self._narrow(norm, torch.cat([self._shares(_by_size(one)) for one in states]))

    def _shares(self, states: torch.Tensor) -> torch.Tensor:
        """Returns which share of the states, [tokens, width], lies in the components that stay: [tokens]."""
        return (states @ self.components[:, : self.width].float()).square().sum(-1) / states.shape[-1]

    def _narrow(self, norm: Norm, shares: torch.Tensor) -> float:
        """Gives a norm the gain that makes up for the size that its input loses, and returns the mean share that is kept."""
        import torch

        gain = float(shares.sqrt().mean()) * (len(self.components) / self.width) ** 0.5
        set_parameter(norm.module, "weight", torch.full((self.width,), gain - norm.offset))
        return float(shares.mean())


def _empty(layer: torch.nn.Module) -> None:
    """Lets go of the weights of a layer that has been written."""
    import torch

    for below in layer.modules():
        for name, one in below._parameters.items():
            if one is not None:
                below._parameters[name] = torch.nn.Parameter(torch.empty(0), requires_grad=False)


def _narrow_config(config: Any, width: int, full: int) -> None:
    config.head_dim = getattr(config, "head_dim", None) or full // config.num_attention_heads
    config.hidden_size = width
    config.tie_word_embeddings = False


PASS = Pass(
    name="SliceGPT",
    summary="Narrows the hidden states of a language model to their principal components (SliceGPT with one rotation).",
    options=SliceGptOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    data_options=("calibration_data_config",),
    version=2,
)
