"""Walks a language model's decoder layer by layer over a few windows of text, so that a pass can change each on its way.

A layer's inputs come from the layers before it as the pass has left them, unless the pass keeps what they gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.passes.hidden_states import HiddenStates
from runner.passes.quantize.weight_only import decoder_layers

if TYPE_CHECKING:
    import torch

# The names of modules that see the same input, and the sum of x xᵀ over its tokens, [columns, columns].
Hessians = Sequence[tuple[tuple[str, ...], "torch.Tensor"]]

_STRIP = 256  # rows of a Hessian that are added to at a time


@dataclass(frozen=True)
class LayerAt:
    """A decoder layer with what it gets.

    Attributes:
        at: its place among the layers, from 0.
        count: how many layers there are.
        name: its name in the model.
        layer: the layer.
        run: gives the hidden states after the layer for those before it.
        inputs: the hidden states before the layer, each [batch, tokens, width].
        call: arguments and keyword arguments that it is called with besides the hidden states.
        outputs: the hidden states that the next layer gets, where the caller puts them there; else the layer is run once
            more, as the caller has left it.
    """

    at: int
    count: int
    name: str
    layer: torch.nn.Module
    run: Callable[[torch.Tensor], torch.Tensor]
    inputs: Sequence[torch.Tensor]
    call: tuple[tuple[Any, ...], Mapping[str, Any]]
    outputs: HiddenStates = field(default_factory=HiddenStates)


class _Seen(Exception):
    """Ends a forward pass where all that was asked of it has been seen."""


def walk_layers(module: torch.nn.Module, batches: Sequence[torch.Tensor], folder: Path | None = None) -> Iterator[LayerAt]:
    """Yields the decoder layers in order; whatever the caller changes in one shows in the inputs of the next.

    Args:
        module: a language model with a list of decoder layers.
        batches: token ids, [batch, tokens], all of one shape.
        folder: takes the hidden states of two layers at a time; they are in memory when None.

    Raises:
        InvalidRecipe: the model has no list of decoder layers.
        RunFailed: the model does not run its first layer.
    """
    name, layers = decoder_layers(module)
    arguments = _layer_arguments(module, layers, batches[0])
    hidden = HiddenStates(folder)
    hidden.extend(_first_input(module, layers[0], batch) for batch in batches)
    for at, layer in enumerate(layers):
        run = partial(_run, layer, *arguments[at])
        here = LayerAt(at, len(layers), f"{name}.{at}", layer, run, hidden, arguments[at], HiddenStates(folder))
        yield here
        if at + 1 < len(layers) and not here.outputs:
            here.outputs.extend(run(states) for states in hidden)
        hidden = here.outputs


def _layer_arguments(
    module: Any, layers: torch.nn.ModuleList, ids: torch.Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns what each layer is called with besides the hidden states: mask, positions, rotation."""
    found: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(at: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[at] = (args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"})
            if at == len(layers) - 1:
                raise _Seen

        return hook

    hooks = [layer.register_forward_pre_hook(note(at), with_kwargs=True) for at, layer in enumerate(layers)]
    with suppress(_Seen):
        module(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [found[at] for at in range(len(layers))]


def _first_input(module: Any, layer: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states that the first layer gets, [batch, tokens, width]."""
    found: list[torch.Tensor] = []

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Seen

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        module(ids, use_cache=False)
    except _Seen:
        return found[0]
    finally:
        handle.remove()
    raise RunFailed("no-decoder", f"{type(module).__name__} does not run its first decoder layer")


def run_behind(module: Any, last: LayerAt, states: torch.Tensor, ids: torch.Tensor) -> Any:
    """Returns what a model gives for token ids [batch, tokens] when its last layer gives these hidden states.

    Args:
        module: the model.
        last: the last of its layers; of all of them it is the only one that is run, to see what it gives besides the states.
        states: the hidden states behind the last one, [batch, tokens, width].
        ids: the token ids.
    """
    import torch

    _, layers = decoder_layers(module)
    with torch.no_grad():
        own = last.layer(last.inputs[0], *last.call[0], **last.call[1])
    given = (states, *own[1:]) if isinstance(own, tuple) else states
    for layer in layers:
        layer.forward = lambda *_, **__: given
    try:
        return module(ids, use_cache=False)
    finally:
        for layer in layers:
            del layer.forward


def _run(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], states: torch.Tensor) -> torch.Tensor:
    output = layer(states, *args, **kwargs)
    after: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return after


def input_hessians(
    modules: Mapping[str, torch.nn.Module],
    run: Callable[[torch.Tensor], Any],
    inputs: Sequence[torch.Tensor],
    outputs: HiddenStates | list[Any] | None = None,
) -> Hessians:
    """Runs over the inputs and returns the Hessians of the modules.

    What the runs give is added to `outputs`; without that, nothing behind the last of the modules is run.
    """
    sums: dict[str, torch.Tensor] = {}
    leader_of: dict[str, str] = {}
    seen: dict[int, tuple[str, torch.Tensor]] = {}  # inputs of this run, kept so that no other gets their identity
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            leader_of[name] = seen.setdefault(id(args[0]), (name, args[0]))[0]
            if leader_of[name] == name:
                tokens = args[0].reshape(-1, args[0].shape[-1])
                if name not in sums:
                    sums[name] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
                _add_above(sums[name], tokens)
            called.add(name)
            if outputs is None and len(called) == len(modules):
                raise _Seen

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    for one in inputs:
        seen.clear()
        called.clear()
        with suppress(_Seen):
            given = run(one)
            if outputs is not None:
                outputs.append(given)
    seen.clear()
    for hook in hooks:
        hook.remove()
    for total in sums.values():
        total.copy_(total.triu() + total.triu(1).T)
    return [(tuple(name for name in leader_of if leader_of[name] == leader), total) for leader, total in sums.items()]


def _add_above(total: torch.Tensor, tokens: torch.Tensor) -> None:
    """Adds the upper triangle of the tokens' x xᵀ in strips: what lies below follows from symmetry."""
    for start in range(0, total.shape[0], _STRIP):
        stop = start + _STRIP
        total[start:stop, start:].addmm_(tokens[:, start:stop].T, tokens[:, start:])
