"""From a model's output to predictions: Olive's post-processing components, and the form in which scripts get outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def best_class(output: Any) -> Any:
    """Returns the greatest score's class [..., classes] -> [...], of the output called ``logits`` or of the first."""
    return _logits(output).argmax(axis=-1)


def logits(output: Any) -> Any:
    """Returns the output called ``logits`` or ``last_hidden_state``, or the only one."""
    return _logits(output)


def _logits(output: Any) -> Any:
    if not isinstance(output, Mapping):
        return output
    return next((output[name] for name in ("logits", "last_hidden_state") if name in output), next(iter(output.values())))


# Olive's names. None leaves the output as it is: the greatest score of its last axis is the prediction.
OURS: Mapping[str, Callable[[Any], Any] | None] = {
    "post_process": None,
    "skip_post_process": None,
    "text_classification_post_process": best_class,
    "ner_post_process": best_class,
    "text_generation_post_process": logits,
}


def scripted(component: Callable[..., Any], parameters: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Returns a script's component as a function of numpy outputs; the script itself gets torch tensors, as in Olive."""

    def process(output: Any) -> Any:
        import torch

        if isinstance(output, Mapping):
            given: Any = {name: torch.from_numpy(array) for name, array in output.items()}
        else:
            given = torch.from_numpy(output)
        return component(given, **parameters)

    return process
