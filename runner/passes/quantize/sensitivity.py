"""How much the modules of a language model suffer from being quantised to few bits rather than to more.

All measures grow with the harm. Those of weights alone: noise against signal and noise against noise (as ratios of squared
norms), and the largest mean squared error of a row, as NNCF weighs it. That of outputs, as in mlx-lm's dynamic quantisation,
estimates to first order how far the KL divergence of the quantised model from the model falls when a module gets more bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.models.mapped_weights import give_back, in_fp32
from runner.models.quantized_checkpoint import HEAD, Scheme
from runner.passes.layer_walk import LayerAt, run_behind, walk_layers
from runner.passes.quantize.grid import round_to_nearest

if TYPE_CHECKING:
    import torch

WeightMeasure = Literal["snr", "snr_relative", "iqe", "iqe_relative"]
_LEAST = 1e-24
_AT_ONCE = 2**23  # weights that are looked at together


@dataclass(frozen=True)
class Rivals:
    """The two schemes that a module may get."""

    low: Scheme
    high: Scheme


def weight_sensitivity(weights: Sequence[torch.Tensor], schemes: Rivals, measure: WeightMeasure) -> float:
    """Returns the harm that the low scheme does to matrices, [rows, columns] of any float type, as if they were one."""
    low = signal = high = 0.0
    most = most_high = 0.0
    for rows in (part.float() for weight in weights for part in weight.detach().split(max(1, _AT_ONCE // weight.shape[1]))):
        errors = (round_to_nearest(rows, schemes.low).dequantized() - rows).square_()
        low, most = low + _sum(errors), max(most, float(errors.mean(1).max()))
        if measure == "snr":
            signal += _sum(rows.square())
        elif measure.endswith("_relative"):
            errors = (round_to_nearest(rows, schemes.high).dequantized() - rows).square_()
            high, most_high = high + _sum(errors), max(most_high, float(errors.mean(1).max()))
    if measure == "iqe":
        return most
    if measure == "iqe_relative":
        return most / max(most_high, _LEAST)
    return low / max(signal if measure == "snr" else high, _LEAST)


def _sum(values: torch.Tensor) -> float:
    import torch

    return float(values.sum(dtype=torch.float64))


# --- outputs ---------------------------------------------------------------------------------------------------------


def divergence_sensitivity(
    module: Any, schemes: Mapping[str, Rivals], windows: Sequence[torch.Tensor], folder: Path | None = None
) -> dict[str, float]:
    """Returns by module how much the divergence falls when it alone goes from its low scheme to its high one.

    The divergence is KL(model || model with all low schemes), its mean over tokens, and its fall the product of its gradient
    with the difference of the two weights. The model goes through layer by layer, there and back: besides its weights as they
    are, those of one layer are held in fp32, the hidden states before every layer, and the model's answers to all windows in
    fp16.

    Args:
        module: a language model that computes in fp32; its weights stay as they are.
        schemes: those of the modules to compare.
        windows: token ids, each [1, tokens], all of one length.
        folder: takes the hidden states; they are in memory when None.
    """
    import torch

    module.requires_grad_(False)
    falls = dict.fromkeys(schemes, 0.0)
    way: list[LayerAt] = []
    with torch.no_grad():
        kept: Sequence[torch.Tensor] = []  # what the model itself has before a layer; beside it, what the low weights give
        for layer in walk_layers(module, windows, folder):
            kept = kept or list(layer.inputs)
            inner = _within(layer, schemes)
            with in_fp32(layer.layer):
                kept = [layer.run(states) for states in kept]
            with _low_weights(module, inner):
                layer.outputs.extend(layer.run(states) for states in layer.inputs)
            way.append(layer)
        answers = [_log_probabilities(module, way, states, ids).half() for states, ids in zip(kept, windows, strict=True)]
    slopes = []
    with _low_head(module, schemes, falls):
        for states, ids, expected in zip(way[-1].outputs, windows, answers, strict=True):
            behind = states.detach().clone().requires_grad_()
            found = _log_probabilities(module, way, behind, ids)
            torch.nn.functional.kl_div(found, expected.float(), reduction="sum", log_target=True).div(len(found)).backward()
            slopes.append(behind.grad)
    for layer in reversed(way):
        slopes = _back(module, layer, _within(layer, schemes), slopes, falls)
    return {name: fall / len(windows) for name, fall in falls.items()}


def _within(layer: LayerAt, schemes: Mapping[str, Rivals]) -> dict[str, Rivals]:
    return {name: rivals for name, rivals in schemes.items() if name.startswith(f"{layer.name}.")}


def _back(
    module: Any, layer: LayerAt, schemes: Mapping[str, Rivals], slopes: Sequence[Any], falls: dict[str, float]
) -> list[Any]:
    """Takes the gradients behind a layer to those before it, and adds up the falls of its modules on the way."""
    before = []
    highs = {name: (module.get_submodule(name).weight, rivals.high) for name, rivals in schemes.items()}
    with _low_weights(module, schemes):
        hooks = []
        for name, (weight, high) in highs.items():
            low = module.get_submodule(name).weight.requires_grad_()
            difference = (low.detach() - round_to_nearest(weight, high).dequantized()).bfloat16()
            hooks.append(low.register_post_accumulate_grad_hook(_add_up(falls, name, difference)))
        for states, slope in zip(layer.inputs, slopes, strict=True):
            given = states.detach().clone().requires_grad_()
            layer.run(given).backward(slope)
            before.append(given.grad)
        for hook in hooks:
            hook.remove()
    return before


@contextmanager
def _low_weights(module: Any, schemes: Mapping[str, Rivals]) -> Iterator[None]:
    """Gives modules the weights of their low schemes, in fp32, within the block."""
    import torch

    below = {name: module.get_submodule(name) for name in schemes}
    kept = {name: one.weight for name, one in below.items()}
    for name, one in below.items():
        low = round_to_nearest(one.weight, schemes[name].low).dequantized()
        one._parameters["weight"] = torch.nn.Parameter(low, requires_grad=False)
        give_back(kept[name])
    try:
        yield
    finally:
        for name, one in below.items():
            one._parameters["weight"] = kept[name]


@contextmanager
def _low_head(module: Any, schemes: Mapping[str, Rivals], falls: dict[str, float]) -> Iterator[None]:
    """Lets the head compute with the weights of its low scheme, and adds up its fall with every gradient that passes.

    It is the largest matrix of a model, so its codes are kept and its weights made some rows at a time.
    """
    import torch

    head = module.get_submodule(HEAD) if HEAD in schemes else None
    if head is None:
        yield
        return
    low, high = (round_to_nearest(head.weight, scheme) for scheme in (schemes[HEAD].low, schemes[HEAD].high))
    rows = max(1, _AT_ONCE // head.in_features)
    parts = [slice(at, at + rows) for at in range(0, head.out_features, rows)]

    class Product(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, inputs: torch.Tensor) -> torch.Tensor:
            context.save_for_backward(inputs)
            made = [torch.nn.functional.linear(inputs, low.view(part.start, part.stop).dequantized()) for part in parts]
            return torch.cat(made, -1)

        @staticmethod
        def backward(context: Any, slope: torch.Tensor) -> torch.Tensor:
            (inputs,) = context.saved_tensors
            before = torch.zeros_like(inputs)
            for part in parts:
                weight, given = low.view(part.start, part.stop).dequantized(), slope[..., part]
                before += given @ weight
                difference = (weight - high.view(part.start, part.stop).dequantized()).bfloat16().float()
                falls[HEAD] += float((torch.nn.functional.linear(inputs, difference) * given).sum())
            return before

    own = head.__dict__.get("forward")
    head.forward = lambda inputs: Product.apply(inputs) if head.bias is None else Product.apply(inputs) + head.bias
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def _log_probabilities(module: Any, way: Sequence[LayerAt], states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns [tokens, vocabulary], what the model makes of the hidden states behind its last layer."""
    logits: torch.Tensor = run_behind(module, way[-1], states, ids).logits[0]
    return logits.log_softmax(-1)


def _add_up(falls: dict[str, float], name: str, difference: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def hook(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        falls[name] += float((weight.grad * difference).sum())
        weight.grad = None

    return hook
