"""What is known of a language model's matrices before anything of it is loaded, or even fetched. Imports no ML library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import RecipeError
from runner.models.checkpoint import read_json
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import EMBEDDING, HEAD, quantization_of
from runner.models.stored_weights import shapes_of
from runner.models.weight_count import is_plain_decoder

# Weights of linear layers; those of experts are not ones of their own, whatever the files say.
_LINEAR = re.compile(r"(model\.layers\.\d+\.(?!.*\bexperts\.).*(_proj|\.fc1|\.fc2|\.dense))\.weight")
_JOINED = ("phi3",)  # architectures whose queries, keys and values, and gate and up, are one matrix each


@dataclass(frozen=True)
class Outline:
    """A language model from outside.

    Attributes:
        config: the entries of its config.json that are of the language model.
        rows: weights of a row of each linear layer in its decoder that is in floating point, of its head and of its embedding,
            by the names of their modules.
        quantised: some of its weights are codes in the layout of `quantized_checkpoint`.
    """

    config: Mapping[str, Any]
    rows: Mapping[str, int]
    quantised: bool = False


def outline_of(handle: ModelHandle) -> Outline | None:
    """Returns the outline of a transformers folder; None for another model, and where its files do not tell."""
    if handle.kind != "hf" or "twin_of" in handle.attributes:
        return None
    try:
        config = read_json(handle.folder / "config.json")
        shapes = shapes_of(handle.folder)
    except (RecipeError, OSError):
        return None
    rows = {found[1]: shape[1] for name, shape in shapes.items() if len(shape) == 2 and (found := _LINEAR.fullmatch(name))}
    embedding = shapes.get(f"{EMBEDDING}.weight")
    if embedding is not None and len(embedding) == 2:
        rows[EMBEDDING] = embedding[1]
        if f"{HEAD}.qweight" not in shapes:
            rows[HEAD] = embedding[1]
    return Outline({**config, **(config.get("text_config") or {})}, rows, quantization_of(handle.folder) is not None)


def outline_of_id(model_id: str) -> Outline | None:
    """Returns the outline of a published decoder whose architecture is known; None for any other model."""
    from runner.models.twin import architecture_of  # brings the tables of architectures

    try:
        known = architecture_of(model_id)
    except RecipeError:
        return None
    if known.stands_in or not is_plain_decoder(known.model_type):
        return None
    config = {"model_type": known.model_type, **known.facts}
    widths = row_widths(config)
    hidden, attention, inner = (widths.get(name) for name in ("hidden", "attention", "inner"))
    if not hidden or not attention or not inner:
        return None
    joined = known.model_type in _JOINED
    readers = ("self_attn.qkv_proj", "mlp.gate_up_proj") if joined else ("self_attn.q_proj", "mlp.up_proj")
    each = {**dict.fromkeys(readers, hidden), "self_attn.o_proj": attention, "mlp.down_proj": inner}
    layers = range(int(config["num_hidden_layers"]))
    rows = {f"model.layers.{at}.{name}": width for at in layers for name, width in each.items()}
    return Outline(config, {**rows, EMBEDDING: hidden, HEAD: hidden})


def row_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many weights the rows of a decoder's matrices have that read its hidden states, its heads and what lies
    between the two matrices of its feed-forward part: `hidden`, `attention`, `inner`, as far as its configuration tells.
    """
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not hidden or not heads:
        return {}
    widths = {
        "hidden": hidden,
        "attention": heads * (config.get("head_dim") or hidden // heads),
        "inner": config.get("intermediate_size"),
    }
    return {name: width for name, width in widths.items() if isinstance(width, int) and width}
