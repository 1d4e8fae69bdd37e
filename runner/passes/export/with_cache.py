"""What torch's exporter is given for a language model with its key-value cache, in the names that onnxruntime-genai reads.

Inputs are input_ids, attention_mask, position_ids (where the model takes them) and past_key_values.N.key and .value; outputs
are logits and present.N.key and .value. The first prompt runs with caches of length 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, Problem
from runner.passes.export.from_transformers import takes_positions
from runner.passes.export.torch_export import Export

if TYPE_CHECKING:
    import torch

_BATCH, _PAST, _NEW = 2, 5, 3  # example sizes, all different, since the exporter takes equal ones for the same
_IDS = {0: "batch_size", 1: "sequence_length"}
_SEEN = {0: "batch_size", 1: "total_sequence_length"}
_PAST_CACHE = {0: "batch_size", 2: "past_sequence_length"}
_PRESENT_CACHE = {0: "batch_size", 2: "total_sequence_length"}


def export_with_cache(module: torch.nn.Module, past_name: str, *, fused: bool) -> Export:
    """Returns the export of a transformers language model with its cache.

    Args:
        module: the loaded model.
        past_name: what the inputs that hold the cache are called.
        fused: export attention as one operator.

    Raises:
        InvalidRecipe: the model's cache is not one of keys and values in every layer.
    """
    import torch

    module.set_attn_implementation("sdpa" if fused else "eager")
    past = _example_cache(module)
    count = len(past) // 2
    ids = torch.zeros(_BATCH, _NEW, dtype=torch.int64)
    args = [ids, torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64)]
    names = ["input_ids", "attention_mask"]
    if takes_positions(module):
        args.append(torch.arange(_PAST, _PAST + _NEW).expand(_BATCH, -1))
        names.append("position_ids")
    parts = [(layer, part) for layer in range(count) for part in ("key", "value")]
    caches = [f"{past_name}.{layer}.{part}" for layer, part in parts]
    presents = [f"present.{layer}.{part}" for layer, part in parts]
    axes = {
        "input_ids": _IDS,
        "attention_mask": _SEEN,
        "position_ids": _IDS,
        "logits": _IDS,
        **dict.fromkeys(caches, _PAST_CACHE),
        **dict.fromkeys(presents, _PRESENT_CACHE),
    }
    return Export(_with_cache(module, names), (*args, *past), {}, [*names, *caches], ["logits", *presents], axes)


def _example_cache(module: torch.nn.Module) -> list[torch.Tensor]:
    """Returns keys and values [batch, heads, past, width] of every layer, in the shapes that the model itself makes."""
    import torch

    with torch.no_grad():
        made = module(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=True, return_dict=True)
    layers = list(getattr(getattr(made, "past_key_values", None), "layers", ()))
    kept = [getattr(layer, part, None) for layer in layers for part in ("keys", "values")]
    cache = [one for one in kept if isinstance(one, torch.Tensor) and one.dim() == 4]
    if not cache or len(cache) < len(kept):
        raise InvalidRecipe(
            Problem(
                "no-key-value-cache",
                f"{type(module).__name__} keeps no keys and values of every layer; its state cannot be exported as a cache",
                remedy="use ModelBuilder, or the task text-generation for a graph without a cache",
            )
        )
    return [torch.zeros(_BATCH, one.shape[1], _PAST, one.shape[3]) for one in cache]


def _with_cache(module: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """Returns the module that the exporter sees: it takes `names`, then the cache, and gives the logits, then the cache."""
    import torch
    from transformers.cache_utils import DynamicCache

    class WithCache(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
            past = inputs[len(names) :]
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            given = dict(zip(names, inputs, strict=False))
            result = self.model(**given, past_key_values=cache, use_cache=True, return_dict=True)
            kept = [part for layer in result.past_key_values.layers for part in (layer.keys, layer.values)]
            return result.logits, *kept

    return WithCache().eval()
