"""The residual stream of a language model: what writes to it, what reads from it, and how all of it is turned at once.

Norms that do nothing but divide by the root mean square commute with a rotation as soon as their gains have moved into the
layers that read from them (S. Ashkboos et al.: SliceGPT, ICLR 2024; QuaRot, NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.mapped_weights import empty_in_file, give_back
from runner.passes.quantize.weight_only import decoder_layers

if TYPE_CHECKING:
    import torch

_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
_LINEARS = (*(name for names in _READERS.values() for name in names), *_WRITERS)
_AT_ONCE = 2**22  # weights that are multiplied at a time
_LARGE = 2**26  # weights of a matrix from which on its pages may lie in a file
_TOLERANCE = 1e-3  # of the logits, that a rotation in fp32 may change


@dataclass(frozen=True)
class Norm:
    """A norm of the stream.

    Attributes:
        module: its gain is `module.weight` plus `offset`.
        offset: one where the weight is a difference from one, as in Gemma; else zero.
        readers: the linear layers that read its output.
    """

    module: Any
    offset: float
    readers: Sequence[Any]


@dataclass(frozen=True)
class Stream:
    """Everything that touches the hidden states between the layers of a model.

    Attributes:
        embedding: what begins them.
        norms: what reads them, the last one with the head as its reader.
        writers: linear layers whose output is added to them.
    """

    embedding: Any
    norms: Sequence[Norm]
    writers: Sequence[Any]

    @property
    def layers(self) -> Iterator[tuple[Sequence[Norm], Sequence[Any]]]:
        """Yields the norms and the writers of each layer."""
        norms, writers = len(_READERS), len(_WRITERS)
        for at in range(len(self.writers) // writers):
            yield self.norms[at * norms : (at + 1) * norms], self.writers[at * writers : (at + 1) * writers]

    @property
    def width(self) -> int:
        """Returns the size of the hidden states."""
        return int(self.embedding.weight.shape[1])


def open_stream(module: Any, asker: str) -> Stream:
    """Returns what touches the hidden states of a language model.

    Args:
        module: the model in fp32.
        asker: name of the pass, for errors.

    Raises:
        InvalidRecipe: its layers are not built in a way that a rotation goes through.
    """
    name, layers = decoder_layers(module)
    head = module.get_output_embeddings()
    last = getattr(module.get_submodule(name.rpartition(".")[0]), "norm", None)
    if head is None or last is None:
        raise _refused(module, asker, "it has no head or no last norm")
    norms: list[Norm] = []
    writers: list[Any] = []
    for layer in layers:
        linears = _linears(module, layer, asker)
        for norm, names in _READERS.items():
            norms.append(_norm(module, getattr(layer, norm), [linears[one] for one in names if one in linears], asker))
        writers += [linears[one] for one in _WRITERS]
    norms.append(_norm(module, last, [head], asker))
    return Stream(module.get_input_embeddings(), norms, writers)


def _linears(module: Any, layer: torch.nn.Module, asker: str) -> dict[str, Any]:
    import torch

    norms = [name for name, _ in layer.named_children() if "norm" in name]
    if set(norms) != set(_READERS):
        raise _refused(module, asker, f"each of its layers has the norms {', '.join(norms)}, not one before each block alone")
    linears = {name: one for name, one in layer.named_modules() if isinstance(one, torch.nn.Linear)}
    strange = [name for name in linears if name not in _LINEARS]
    if strange or not set(_WRITERS) <= set(linears):
        raise _refused(module, asker, f"its layers consist of other projections: {', '.join(strange or linears)}")
    return linears


def _norm(module: Any, norm: Any, readers: Sequence[Any], asker: str) -> Norm:
    """Tells a norm that divides by the root mean square, and does nothing else, by what it computes."""
    import torch

    states = torch.randn(1, 4, norm.weight.shape[0], generator=torch.Generator().manual_seed(0)) * 10
    plain = states / states.square().mean(-1, keepdim=True).sqrt()
    for offset in (0.0, 1.0):
        if torch.allclose(norm(states), plain * (norm.weight.float() + offset), rtol=1e-3, atol=1e-4):
            return Norm(norm, offset, readers)
    raise _refused(module, asker, f"its {type(norm).__name__} is no root mean square norm")


def _refused(module: Any, asker: str, reason: str) -> InvalidRecipe:
    cause = f"{asker}: the residual stream of {type(module).__name__} cannot be rotated: {reason}"
    return InvalidRecipe(Problem("not-rotatable", cause, remedy=f"leave {asker} out for this architecture"))


@contextmanager
def unchanged(module: Any, ids: torch.Tensor, asker: str) -> Iterator[None]:
    """Makes sure that a model computes after the block what it computed before.

    Args:
        module: the model.
        ids: token ids [batch, tokens] to try it with.
        asker: name of the pass, for errors.

    Raises:
        RunFailed: it computes something else.
    """
    before = module(ids, use_cache=False).logits
    yield
    check_change(module(ids, use_cache=False).logits, before, type(module).__name__, asker)


def check_change(after: torch.Tensor, before: torch.Tensor, name: str, asker: str) -> None:
    """Makes sure that a part of a model of that name, once it is rotated, gives what it gave before.

    Raises:
        RunFailed: it gives something else; names the pass that asks.
    """
    change = float((after - before).norm() / before.norm())
    if not change < _TOLERANCE:
        raise RunFailed(
            "not-equivalent",
            f"{asker}: {name} computes something else when it is rotated (relative change {change:.2g})",
            f"leave {asker} out for this architecture",
        )


def turn_reader(reader: Any, matrix: torch.Tensor, gain: torch.Tensor | None = None, folder: Path | None = None) -> None:
    """Lets what reads the hidden states, or begins them, have them multiplied by a matrix.

    Args:
        reader: a linear layer or an embedding; its weight may be in half precision, and is in fp32 afterwards.
        matrix: float64 [width, new width].
        gain: float32 [width], what a norm before it multiplied them with; nothing when None.
        folder: takes the pages of a large weight; it is in memory when None.
    """
    import torch

    weight = reader.weight
    shape = len(weight), matrix.shape[1]
    beside = folder is not None and weight.numel() > _LARGE
    made = empty_in_file(shape, torch.float32, folder) if beside and folder else torch.empty(shape)
    step = max(1, _AT_ONCE // weight.shape[1])
    for part, goal in zip(weight.split(step), made.split(step), strict=True):
        wide = part.float() if gain is None else part.float() * gain
        goal.copy_(wide.double() @ matrix)
    give_back(weight)
    set_parameter(reader, "weight", made)


def turn_writer(writer: Any, matrix: torch.Tensor) -> None:
    """Lets a linear layer add its output to the hidden states multiplied by a matrix, float64 [width, new width]."""
    weight = writer.weight
    set_parameter(writer, "weight", matrix.T @ weight.double())
    give_back(weight)
    if writer.bias is not None:
        set_parameter(writer, "bias", matrix.T @ writer.bias.double())


def set_parameter(module: Any, name: str, value: torch.Tensor) -> None:
    """Gives a module a parameter of these values in fp32; they may have another shape than before."""
    import torch

    setattr(module, name, torch.nn.Parameter(value.float().contiguous(), requires_grad=False))
