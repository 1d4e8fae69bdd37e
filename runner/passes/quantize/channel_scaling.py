"""Input channels of linear layers that can be scaled without changing what a decoder layer computes.

A set of linear layers reads the same channels; a norm or the rows of another projection writes them. Norms are found by what
flows in a run (their output is the very tensor that the linear layers get), projections by the names that transformers uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.passes.layer_walk import LayerAt

if TYPE_CHECKING:
    import torch

# A projection -> the one whose rows write its input channels, and how many of its last rows do: all, or of a fused one.
_WRITERS = {"o_proj": ("v_proj", "qkv_proj"), "down_proj": ("up_proj", "gate_up_proj")}


@dataclass(frozen=True)
class Call:
    """A module's arguments and output in a run."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def of(self, windows: int) -> Call:
        """Returns the call for the first few windows of the batch; the output is the first of several."""
        output = self.output[0] if isinstance(self.output, tuple) else self.output
        batch = output.shape[0]
        args, kwargs = _first(self.args, batch, windows), _first(dict(self.kwargs), batch, windows)
        return Call(self.module, args, kwargs, output[:windows])

    def again(self) -> torch.Tensor:
        """Runs the module as it is now and returns its first output."""
        output = self.module(*self.args, **self.kwargs)
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first


def _first(value: Any, batch: int, windows: int) -> Any:
    """Cuts every tensor in nested arguments that has the batch as its first axis."""
    import torch

    if isinstance(value, torch.Tensor):
        return value[:windows] if value.dim() > 1 and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {key: _first(one, batch, windows) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_first(one, batch, windows) for one in value)
    return value


@dataclass(frozen=True)
class Channels:
    """Channels that a set of linear layers reads.

    Attributes:
        readers: the linear layers by their names in the model.
        block: the call of the attention or feed-forward block whose output tells the error; None where only the products of
            the readers do.
        magnitude: mean of the absolute values of each channel, [channels].
        writer: the module that writes them.
        rows: first row of the writer's weight that does; 0 for a norm.
        offset: added to a norm's weight before it multiplies, as Gemma's do.
        repeats: how often each head of the writer is read, with grouped-query attention.
        head: channels of a head.
    """

    readers: Mapping[str, torch.nn.Linear]
    block: Call | None
    magnitude: torch.Tensor
    writer: Any
    rows: int = 0
    offset: float = 0.0
    repeats: int = 1
    head: int = 1

    def written(self, read: torch.Tensor) -> torch.Tensor:
        """Returns for a figure of each channel read, [channels], the mean for each channel written."""
        return read.view(-1, self.repeats, self.head).mean(1).view(-1)

    def read(self, written: torch.Tensor) -> torch.Tensor:
        """Returns for a figure of each channel written that of each channel read, [channels]."""
        return written.view(-1, 1, self.head).expand(-1, self.repeats, -1).reshape(-1)

    def scale(self, scales: torch.Tensor) -> None:
        """Multiplies the channels in the readers by `scales` [channels written], and divides the writer by them."""
        for linear in self.readers.values():
            linear.weight.mul_(self.read(scales))
        rows = self.writer.weight[self.rows :]
        if rows.dim() == 1:
            rows.add_(self.offset).div_(scales).sub_(self.offset)
        else:
            rows.div_(scales[:, None])
        if getattr(self.writer, "bias", None) is not None:
            self.writer.bias[self.rows :].div_(scales)


@dataclass
class _Seen:
    """What hooks note in a run: calls of the layer's blocks, inputs of linear layers, outputs of norms."""

    calls: dict[str, Call] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: list[tuple[torch.nn.Module, torch.Tensor]] = field(default_factory=list)


def find_channels(layer: LayerAt) -> tuple[list[Channels], torch.Tensor]:
    """Runs a layer on its first batch; returns the channels that can be scaled, and the layer's output."""
    seen, output = _observe(layer)
    return [*_after_norms(layer, seen), *_after_projections(layer, seen)], output


def _observe(layer: LayerAt) -> tuple[_Seen, torch.Tensor]:
    import torch

    seen = _Seen()

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if isinstance(module, torch.nn.Linear):
                seen.inputs[name] = args[0]
            elif getattr(getattr(module, "weight", None), "ndim", 0) == 1:
                seen.norms.append((module, output))
            elif "." not in name:
                seen.calls[name] = Call(module, args, kwargs, output)

        return hook

    inner = [(name, module) for name, module in layer.layer.named_modules() if name]
    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in inner]
    output = layer.run(layer.inputs[0])
    for hook in hooks:
        hook.remove()
    return seen, output


def _after_norms(layer: LayerAt, seen: _Seen) -> list[Channels]:
    found = []
    for norm, output in seen.norms:
        names = [name for name, tensor in seen.inputs.items() if tensor is output]
        if names:
            readers = {f"{layer.name}.{name}": layer.layer.get_submodule(name) for name in names}
            blocks = {name.partition(".")[0] for name in names}
            block = seen.calls.get(blocks.pop()) if len(blocks) == 1 else None
            found.append(Channels(readers, block, _magnitude(output), norm, offset=_offset(norm)))
    return found


def _after_projections(layer: LayerAt, seen: _Seen) -> list[Channels]:
    found = []
    for name, tensor in seen.inputs.items():
        above, _, last = name.rpartition(".")
        parent, reader = layer.layer.get_submodule(above), layer.layer.get_submodule(name)
        for at, other in enumerate(_WRITERS.get(last, ())):
            writer = getattr(parent, other, None)
            if writer is None or f"{above}.{other}" not in seen.inputs:
                continue
            channels, rows = tensor.shape[-1], writer.weight.shape[0]
            written = rows if at == 0 else _last_rows(last, rows, channels)
            head = getattr(parent, "head_dim", None) if written != channels else channels
            if head and written and channels % written == 0 and written % head == 0:
                shape = {"rows": rows - written, "repeats": channels // written, "head": head}
                found.append(Channels({f"{layer.name}.{name}": reader}, None, _magnitude(tensor), writer, **shape))
    return found


def _last_rows(reader: str, rows: int, channels: int) -> int:
    """Returns how many rows of a fused projection, its last, write the reader's channels: those of v, or of up."""
    return (rows - channels) // 2 if reader == "o_proj" else rows // 2


def _magnitude(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).abs().mean(0)


def _offset(norm: Any) -> float:
    """Returns what a norm adds to its weight: tried out with a weight of zero, which mutes all norms but those that add 1."""
    import torch

    kept = norm.weight.clone()
    norm.weight.zero_()
    ramp = torch.linspace(-1, 1, len(kept))
    spread = norm(torch.stack([ramp, -ramp])).diff(dim=0).abs().max()
    norm.weight.copy_(kept)
    return 1.0 if spread > 0 else 0.0
