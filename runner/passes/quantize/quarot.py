"""QuaRot: rotates what flows between the layers of a language model, so that no channel stands out when it is quantised.

After S. Ashkboos et al.: QuaRot, outlier-free 4-bit inference in rotated LLMs (NeurIPS 2024); of its rotations those that
the weights can take up and that cost nothing when the model runs. The residual stream x becomes x R: the embedding and whatever
writes to the stream is multiplied by R, whatever reads from it by Rᵀ. Norms without a gain commute with R, so their gains
move into the layers that read from them. The values of a head become v S, undone in the rows of the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.outline import Outline
from runner.models.quantized_checkpoint import quantization_of, write_weights
from runner.models.sharded_weights import ShardedWeights
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.hadamard import Mode, rotation
from runner.passes.quantize.weight_only import carry_adapter, decoder_layers, with_head
from runner.passes.residual_stream import Norm, open_stream, set_parameter, turn_reader, turn_writer, unchanged
from runner.recipe.options import PassOptions
from runner.targets.target import Target

if TYPE_CHECKING:
    import torch


class QuaRotOptions(PassOptions):
    """Options of QuaRot."""

    rotate_mode: Mode = Field(
        "hadamard", description="hadamard spreads every channel evenly; random takes any orthogonal matrix"
    )
    seed: int = Field(0, description="of the random signs or matrices")


def _apply(model: ModelHandle, options: QuaRotOptions, context: PassContext) -> ModelHandle:
    import torch

    from runner.models.torch_source import load_to_run

    if quantization_of(model.folder):
        raise InvalidRecipe(Problem("quantised-already", "QuaRot: this model is quantised already", remedy="put it first"))
    torch.set_num_threads(context.threads)
    module: Any = load_to_run(with_head(model))
    shards = ShardedWeights(context.output)
    with torch.inference_mode():
        rotate(module, options.rotate_mode, options.seed, Kept(module, shards, context))
    left = {name: one.float() for name, one in module.state_dict().items() if name not in shards.names}
    changes = {"tie_word_embeddings": False, "dtype": "float32"}
    write_weights(left, changes, model.folder, context.output, shards)
    carry_adapter(model, context.output)
    return replace(model, folder=context.output)


@dataclass(frozen=True)
class Kept:
    """Takes the rotated weights of a module to the disk, so that few of them are in memory.

    Attributes:
        module: the model.
        shards: where they go.
        context: what the pass was given.
    """

    module: Any
    shards: ShardedWeights
    context: PassContext

    def keep(self, part: Any) -> None:
        """Writes the weights of a part of the model in fp32; they are read from their file from then on."""
        name = next(name for name, one in self.module.named_modules() if one is part)
        for below, one in part.state_dict().items():
            for written, mapped in self.shards.put({f"{name}.{below}": one.float()}).items():
                above, _, last = written.rpartition(".")
                owner = self.module.get_submodule(above)
                if last in owner._parameters:
                    set_parameter(owner, last, mapped)


def rotate(module: Any, mode: Mode, seed: int, kept: Kept | None = None) -> None:
    """Rotates a language model in place; it computes what it computed before.

    Args:
        module: a language model that computes in fp32. Its embedding and head are two matrices afterwards.
        mode: which matrices to rotate with.
        seed: of these.
        kept: takes each part of the model when it is rotated; all stay in memory when None.

    Raises:
        InvalidRecipe: its layers are not built in a way that a rotation goes through.
        RunFailed: it computes something else when rotated.
    """
    import torch

    stream = open_stream(module, "QuaRot")
    ids = torch.randint(0, stream.embedding.num_embeddings, (1, 32), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    folder = kept.context.scratch if kept else None
    layers = decoder_layers(module)[1]
    with unchanged(module, ids, "QuaRot"):
        matrix = rotation(stream.width, mode, generator)
        turn_reader(stream.embedding, matrix, folder=folder)  # a head that is tied keeps the weight that was
        module.config.tie_word_embeddings = False
        if kept:
            kept.keep(stream.embedding)
        for at, (layer, (norms, writers)) in enumerate(zip(layers, stream.layers, strict=True), 1):
            for norm in norms:
                _free(norm, matrix, folder)
            for writer in writers:
                turn_writer(writer, matrix)
            values = _values(layer.self_attn)
            _rotate_values(values, rotation(values.width, mode, generator))
            if kept:
                kept.keep(layer)
                kept.context.progress(at, len(layers))
        _free(stream.norms[-1], matrix, folder)
        if kept:
            kept.keep(module.get_output_embeddings())


def _free(norm: Norm, matrix: torch.Tensor, folder: Path | None) -> None:
    """Moves the gain of a norm into its readers, and turns what they read."""
    import torch

    gain = norm.module.weight.float() + norm.offset
    for reader in norm.readers:
        turn_reader(reader, matrix, gain, folder)
    set_parameter(norm.module, "weight", torch.full_like(gain, 1 - norm.offset))


@dataclass(frozen=True)
class Values:
    """The values of an attention: the rows `start` and beyond of the projection that makes them, and what reads them."""

    source: Any
    start: int
    width: int
    sink: Any


def _values(attention: Any) -> Values:
    sink = attention.o_proj
    if (source := getattr(attention, "v_proj", None)) is not None:
        return Values(source, 0, attention.head_dim, sink)
    source = attention.qkv_proj
    shared = sink.in_features + (source.out_features - sink.in_features) // 2  # rows of queries and keys
    return Values(source, shared, attention.head_dim, sink)


def _rotate_values(values: Values, matrix: torch.Tensor) -> None:
    """Turns every head's values, and undoes it where they are read."""
    made = values.source.weight[values.start :]
    made.copy_((matrix.T @ made.double().view(-1, len(matrix), made.shape[1])).view(made.shape))
    if values.source.bias is not None:
        bias = values.source.bias.double()
        bias[values.start :] = (bias[values.start :].view(-1, len(matrix)) @ matrix).view(-1)
        set_parameter(values.source, "bias", bias)
    read = values.sink.weight
    read.copy_((read.double().view(-1, len(matrix)) @ matrix).view(read.shape))


def _foresee(options: QuaRotOptions, outline: Outline | None, target: Target) -> Outline | None:
    return replace(outline, config={**outline.config, "tie_word_embeddings": False}) if outline else None


PASS = Pass(
    name="QuaRot",
    summary="Rotates the channels of a language model so that none stands out; Gptq or Rtn then quantises it better.",
    options=QuaRotOptions,
    apply=_apply,
    takes=("hf",),
    gives="hf",
    packages=("torch", "transformers", "safetensors"),
    foresee=_foresee,
)
