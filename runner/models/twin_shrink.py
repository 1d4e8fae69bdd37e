"""The configuration of an architecture at toy size: what decides the shape of its graph stays, what decides its size shrinks.

Imports no ML library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import InvalidRecipe, Problem

LAYERS = 2
CONTEXT = 4096
WINDOW = 64
_STEP = 64  # widths are multiples of it: an even number of quantisation blocks
_HEAD = 32
_EXPERTS = 4
_PARTIAL_HEADS = (64, 80, 96, 128, 160)  # of a partially rotated head: its rotated part stays a multiple of 16
# What some architectures call the entries that the others agree on.
_NAMES = {
    "distilbert": {
        "n_heads": "num_attention_heads",
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_layers": "num_hidden_layers",
    },
    "gpt2": {
        "n_head": "num_attention_heads",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    },
    "opt": {"ffn_dim": "intermediate_size"},
    "t5": {
        "num_heads": "num_attention_heads",
        "d_model": "hidden_size",
        "d_kv": "head_dim",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
    },
}
# Convolutional and hierarchical models: their whole shape at toy size.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]},
    "convnext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    "mobilenet_v2": {"depth_multiplier": 0.35},
}
# The tower for pictures is larger than that for texts: a step that takes one for the other must not pass unseen.
_OTHER_TOWER = {"num_attention_heads": 6, "hidden_size": 192, "intermediate_size": 768}
_PATCHED_VISION = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


def shrink(model_type: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config entries of the same architecture at toy size.

    Raises:
        InvalidRecipe: the entries do not say how wide the architecture is.
    """
    config = dict(facts)
    if model_type in _FIXED:
        return {**config, **_FIXED[model_type]}
    if model_type == "whisper":
        return _shrink_whisper(config)
    if "text_config" in config:
        return _shrink_parts(model_type, config)
    names = _NAMES.get(model_type, {})
    named = {names.get(key, key): value for key, value in config.items()}
    if "num_attention_heads" not in named or "hidden_size" not in named:
        raise InvalidRecipe(
            Problem(
                "no-tiny-twin",
                f"no tiny twin is made of a '{model_type}': its config.json names no hidden_size and num_attention_heads",
                remedy="name a model of another architecture, or run without --smoke",
            )
        )
    small = _shrink_transformer(named)
    back = {name: key for key, name in names.items()}
    small = {back.get(key, key): value for key, value in small.items() if not names or key in named or key not in back}
    if "word_embed_proj_dim" in small:
        small["word_embed_proj_dim"] = small["hidden_size"]
    if "num_decoder_layers" in small:
        small["num_decoder_layers"] = LAYERS
    if "conv_dim" in small or model_type in ("wav2vec2", "hubert"):
        small["conv_dim"] = [32] * len(small.get("conv_dim", range(7)))
    return small


def _shrink_whisper(config: dict[str, Any]) -> dict[str, Any]:
    width = _STEP * 2
    tiny = {"d_model": width, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    tiny |= dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), LAYERS)
    return config | tiny


def _shrink_parts(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """A model of a language part and a part that sees."""
    text = config["text_config"]
    small = shrink(text.get("model_type", f"{model_type}_text"), text)
    config["text_config"] = small
    if (vision := config.get("vision_config")) is None:
        return config
    if model_type in _PATCHED_VISION:
        config["vision_config"] = _shrink_patched_vision(vision, small["hidden_size"])
    else:
        config["vision_config"] = shrink(vision.get("model_type", "siglip_vision_model"), vision)
    if "projection_dim" in config:
        config["projection_dim"] = _STEP
        config["vision_config"] |= _OTHER_TOWER if vision["hidden_size"] != text["hidden_size"] else {}
    return config


def _shrink_patched_vision(vision: Mapping[str, Any], width: int) -> dict[str, Any]:
    tiny = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "depth": LAYERS, "out_hidden_size": width}
    kept = [key for key in ("fullatt_block_indexes", "deepstack_visual_indexes") if key in vision]
    return {**vision, **tiny, **{key: [LAYERS - 1] for key in kept}}


def _shrink_transformer(config: dict[str, Any]) -> dict[str, Any]:
    rope = _rope_of(config)
    partial = float(config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0)
    heads, kv = int(config["num_attention_heads"]), int(config.get("num_key_value_heads") or config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    head = int(config.get("head_dim") or max(1, hidden // heads))

    tiny_head = _HEAD if partial == 1.0 else next(width for width in _PARTIAL_HEADS if width * partial % 16 == 0)
    tiny_kv = 1 if kv == 1 else 4 if kv == heads else 2
    tiny_heads = tiny_kv * (heads // kv)
    tiny_hidden = _near(tiny_heads * tiny_head * hidden / (heads * head), math.lcm(_STEP, tiny_heads))
    config |= {"num_attention_heads": tiny_heads, "hidden_size": tiny_hidden, "num_hidden_layers": LAYERS}
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = tiny_kv
    if config.get("head_dim") or head * heads != hidden:
        config["head_dim"] = tiny_head
    if "embedding_size" in config:
        config["embedding_size"] = tiny_hidden if config["embedding_size"] == hidden else _STEP
    if "intermediate_size" in config:
        config["intermediate_size"] = _near(tiny_hidden * min(config["intermediate_size"] / hidden, 4.0), _STEP)
    if config.get("query_pre_attn_scalar"):
        config["query_pre_attn_scalar"] = tiny_head
    rotated = int(tiny_head * partial)
    if "num_local_experts" in config:
        config |= {"num_local_experts": _EXPERTS, "num_experts_per_tok": min(config["num_experts_per_tok"], _EXPERTS // 2)}
    return config | _shrink_linear_attention(config) | _shrink_positions(config, rope, rotated) | _shrink_layer_kinds(config)


def _shrink_linear_attention(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps how many value heads share a key head."""
    if "linear_num_key_heads" not in config:
        return {}
    share = config["linear_num_value_heads"] // config["linear_num_key_heads"]
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * share}
    return {**heads, "linear_key_head_dim": _HEAD, "linear_value_head_dim": _HEAD}


def _near(size: float, step: int) -> int:
    return max(step, round(size / step) * step)


def _rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _shrink_positions(config: Mapping[str, Any], rope: Mapping[str, Any], rotated: int) -> dict[str, Any]:
    """Keeps the trained context's share of the whole context, and the shape of scaling factors."""
    if "max_position_embeddings" not in config:
        return {}
    context = int(config["max_position_embeddings"])
    tiny = min(context, CONTEXT)
    changes: dict[str, Any] = {"max_position_embeddings": tiny}

    def trained(original: int) -> int:
        return tiny if original >= context else max(256, original * tiny // context)

    if config.get("original_max_position_embeddings"):
        changes["original_max_position_embeddings"] = trained(config["original_max_position_embeddings"])
    if not rope:
        return changes
    scaled = dict(rope)
    if scaled.get("original_max_position_embeddings"):
        scaled["original_max_position_embeddings"] = trained(scaled["original_max_position_embeddings"])
    for key in ("short_factor", "long_factor"):
        if isinstance(scaled.get(key), list):
            scaled[key] = _resample(scaled[key], rotated // 2)
    if scaled.get("mrope_section"):
        scaled["mrope_section"] = _divide(rotated // 2, scaled["mrope_section"])
    changes["rope_parameters" if config.get("rope_parameters") else "rope_scaling"] = scaled
    return changes


def _resample(values: list[float], count: int) -> list[float]:
    return [values[at * (len(values) - 1) // max(count - 1, 1)] for at in range(count)]


def _divide(total: int, shares: Sequence[int]) -> list[int]:
    """Returns whole numbers in the proportion of `shares` that sum to `total`; the earlier ones take what is left over."""
    parts = [total * share // sum(shares) for share in shares]
    for at in range(total - sum(parts)):
        parts[at] += 1
    return parts


def _shrink_layer_kinds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves one layer of each kind where a model mixes two, and a window that short texts already leave."""
    changes: dict[str, Any] = {}
    window = config.get("sliding_window")
    if window:
        reaches_all = window >= config.get("max_position_embeddings", window)
        changes["sliding_window"] = CONTEXT if reaches_all else min(window, WINDOW)
    kinds = config.get("layer_types")
    if kinds:
        different = list(dict.fromkeys(kinds))
        changes["layer_types"] = (different * LAYERS)[:LAYERS]
    if config.get("no_rope_layers"):
        changes["no_rope_layers"] = [1, 0]
    return changes
