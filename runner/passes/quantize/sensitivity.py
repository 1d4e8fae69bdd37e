"""How much the modules of a language model suffer from being quantised to few bits rather than to more.

All measures grow with the harm. Those of weights alone: noise against signal and noise against noise (as ratios of squared
norms), and the largest mean squared error of a row, as NNCF weighs it. That of outputs, as in mlx-lm's dynamic quantisation,
estimates to first order how far the KL divergence of the quantised model from the model falls when a module gets more bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.models.quantized_checkpoint import HEAD, Scheme
from runner.passes.quantize.grid import round_to_nearest

if TYPE_CHECKING:
    import torch

WeightMeasure = Literal["snr", "snr_relative", "iqe", "iqe_relative"]
_LEAST = 1e-24


@dataclass(frozen=True)
class Rivals:
    """The two schemes that a module may get."""

    low: Scheme
    high: Scheme


def weight_sensitivity(weight: torch.Tensor, schemes: Rivals, measure: WeightMeasure) -> float:
    """Returns the harm to a weight, float32 [rows, columns], that its low scheme does."""
    low = round_to_nearest(weight, schemes.low).dequantized() - weight
    if measure == "snr":
        return _ratio(low.square().sum(), weight.square().sum())
    if measure == "iqe":
        return float(low.square().mean(1).max())
    high = round_to_nearest(weight, schemes.high).dequantized() - weight
    if measure == "snr_relative":
        return _ratio(low.square().sum(), high.square().sum())
    return _ratio(low.square().mean(1).max(), high.square().mean(1).max())


def _ratio(over: torch.Tensor, under: torch.Tensor) -> float:
    return float(over / under.clamp(min=_LEAST))


def divergence_sensitivity(module: Any, schemes: Mapping[str, Rivals], windows: Sequence[torch.Tensor]) -> dict[str, float]:
    """Returns by module how much the divergence falls when it alone goes from its low scheme to its high one.

    The divergence is KL(model || model with all low schemes), its mean over tokens, and its fall the product of its gradient
    with the difference of the two weights. Besides the weights in fp32 there are the differences in bf16, the gradient of one
    module, and the model's answers to all windows in fp16.

    Args:
        module: a language model in fp32; its weights are the low ones afterwards.
        schemes: those of the modules to compare.
        windows: token ids, each [1, tokens].
    """
    import torch

    with torch.inference_mode():
        answers = [_log_probabilities(module, ids).half() for ids in windows]
    module.requires_grad_(False)
    _untie(module, schemes)
    falls = dict.fromkeys(schemes, 0.0)
    hooks = []
    for name, rivals in schemes.items():
        weight = module.get_submodule(name).weight
        low, high = (round_to_nearest(weight, one).dequantized() for one in (rivals.low, rivals.high))
        weight.data = low
        weight.requires_grad_(True)
        hooks.append(weight.register_post_accumulate_grad_hook(_add_up(falls, name, (low - high).bfloat16())))
    for ids, expected in zip(windows, answers, strict=True):
        found = _log_probabilities(module, ids)
        torch.nn.functional.kl_div(found, expected.float(), reduction="sum", log_target=True).div(len(found)).backward()
    for hook in hooks:
        hook.remove()
    return {name: fall / len(windows) for name, fall in falls.items()}


def _log_probabilities(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """Returns [tokens, vocabulary]."""
    logits: torch.Tensor = module(ids, use_cache=False).logits[0]
    return logits.log_softmax(-1)


def _untie(module: Any, schemes: Mapping[str, Rivals]) -> None:
    """Gives the head weights of its own, so that the embedding keeps its values and takes no part in the head's gradient."""
    import torch

    if HEAD in schemes:
        head = module.get_submodule(HEAD)
        head.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=False)


def _add_up(falls: dict[str, float], name: str, difference: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def hook(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        falls[name] += float((weight.grad * difference).sum())
        weight.grad = None

    return hook
