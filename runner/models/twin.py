"""Tiny twins: which architecture a model id stands for, and the same architecture with two small layers.

A twin keeps what decides the shape of a graph (attention heads per key-value head, kind of rotary embedding, tied or
separate embeddings, activation, normalisation, window layers) and shrinks what decides its size. Imports no ML
library.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem, did_you_mean
from runner.models.checkpoint import read_json
from runner.models.twin_table import KNOWN, Twin
from runner.models.twin_vocabulary import Style, Vocabulary


def architecture_of(model: str | Path) -> Twin:
    """Returns the facts of a model id that the table knows, or of a local folder with a config.json.

    Raises:
        InvalidRecipe: the id matches no pattern; names the nearest one.
        ModelUnavailable: the folder's config.json or tokenizer.json cannot be read.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return _of_folder(folder)
    name = str(model).lower()
    for twin in (*KNOWN, *(replace(twin, pattern=f"*/{twin.pattern.partition('/')[2]}") for twin in KNOWN)):
        if fnmatch.fnmatchcase(name, twin.pattern.lower()):
            return twin
    raise InvalidRecipe(
        Problem(
            "no-tiny-twin",
            f"no architecture is known for the model id '{model}'",
            remedy=did_you_mean(str(model), [twin.pattern for twin in KNOWN])
            + "; a local folder with a config.json serves as well",
        )
    )


# --- shrinking -------------------------------------------------------------------------------------------------------

LAYERS = 2
CONTEXT = 4096
WINDOW = 64
_STEP = 64  # widths are multiples of it: an even number of quantisation blocks
_HEAD, _PARTIAL_HEAD = 32, 64  # a partially rotated head is wider, so that its rotated part stays a multiple of 16
_DISTILBERT = {
    "n_heads": "num_attention_heads",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
}


def shrink(model_type: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config entries of the same architecture at toy size."""
    config = dict(facts)
    if model_type == "resnet":
        return {**config, "embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]}
    if "text_config" in config:
        text = config["text_config"]
        config["text_config"] = shrink(text.get("model_type", f"{model_type}_text"), text)
        if "vision_config" in config:
            vision = config["vision_config"]
            config["vision_config"] = shrink(vision.get("model_type", "siglip_vision_model"), vision)
        return config
    if model_type == "distilbert":
        named = {_DISTILBERT.get(key, key): value for key, value in config.items()}
        return {key: shrink("bert", named).get(_DISTILBERT.get(key, key)) for key in config}
    return _shrink_transformer(config)


def _shrink_transformer(config: dict[str, Any]) -> dict[str, Any]:
    rope = _rope_of(config)
    partial = float(config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0)
    heads, kv = int(config["num_attention_heads"]), int(config.get("num_key_value_heads") or config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    head = int(config.get("head_dim") or hidden // heads)

    tiny_head = _HEAD if partial == 1.0 else _PARTIAL_HEAD
    tiny_kv = 1 if kv == 1 else 4 if kv == heads else 2
    tiny_heads = tiny_kv * (heads // kv)
    tiny_hidden = _near(tiny_heads * tiny_head * hidden / (heads * head), math.lcm(_STEP, tiny_heads))
    config |= {"num_attention_heads": tiny_heads, "hidden_size": tiny_hidden, "num_hidden_layers": LAYERS}
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = tiny_kv
    if config.get("head_dim") or head * heads != hidden:
        config["head_dim"] = tiny_head
    if "intermediate_size" in config:
        config["intermediate_size"] = _near(tiny_hidden * min(config["intermediate_size"] / hidden, 4.0), _STEP)
    if config.get("query_pre_attn_scalar"):
        config["query_pre_attn_scalar"] = tiny_head
    return config | _shrink_positions(config, rope, int(tiny_head * partial)) | _shrink_layer_kinds(config)


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
    changes["rope_parameters" if config.get("rope_parameters") else "rope_scaling"] = scaled
    return changes


def _resample(values: list[float], count: int) -> list[float]:
    return [values[at * (len(values) - 1) // max(count - 1, 1)] for at in range(count)]


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


# --- a local folder --------------------------------------------------------------------------------------------------

_TASK_OF_HEAD = {
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
}
_IMAGE_TYPES = ("resnet", "vit", "dinov2")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_NOT_SHAPE = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "model_type",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
)


def task_of(config: Mapping[str, Any]) -> str:
    """Returns the Hugging Face task that the architecture named in a config.json serves."""
    named = (config.get("architectures") or [""])[0]
    for head, task in _TASK_OF_HEAD.items():
        if named.endswith(head):
            return task
    return "image-feature-extraction" if config.get("model_type") in _IMAGE_TYPES else "feature-extraction"


def _of_folder(folder: Path) -> Twin:
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise ModelUnavailable(
            "bad-config", f"{folder / 'config.json'} names no model_type", "take the model's own config.json"
        )
    facts = {key: value for key, value in config.items() if key not in _NOT_SHAPE}
    processor = folder / "preprocessor_config.json"
    return Twin(
        str(folder),
        config["model_type"],
        task_of(config),
        facts,
        _vocabulary_of(folder, config) if (folder / "tokenizer.json").is_file() else None,
        read_json(processor) if processor.is_file() else None,
    )


def _vocabulary_of(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    tokenizer = read_json(folder / "tokenizer.json")
    told = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    roles = {role: _content(told[role]) for role in _ROLES if told.get(role)}
    added = tokenizer.get("added_tokens", [])
    special = [token["content"] for token in added if token.get("special")]
    stops = config.get("eos_token_id")
    named = {token["id"]: token["content"] for token in added}
    template = folder / "chat_template.jinja"
    return Vocabulary(
        _style_of(tokenizer),
        tuple(dict.fromkeys([*special, *roles.values()])),
        roles,
        stops=tuple(named[token] for token in stops if token in named) if isinstance(stops, list) else (),
        plain=tuple(token["content"] for token in added if not token.get("special")),
        adds_bos=bool(told.get("add_bos_token")) or _adds_bos(tokenizer, roles.get("bos_token")),
        segments="token_type_ids" in told.get("model_input_names", ()),
        template=template.read_text(encoding="utf-8") if template.is_file() else told.get("chat_template"),
    )


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _style_of(tokenizer: Mapping[str, Any]) -> Style:
    model = tokenizer.get("model", {})
    if model.get("type") == "WordPiece":
        return "wordpiece"
    if model.get("byte_fallback") or model.get("type") == "Unigram":
        return "metaspace-bpe"
    return "byte-bpe"


def _adds_bos(tokenizer: Mapping[str, Any], bos: str | None) -> bool:
    processor = tokenizer.get("post_processor") or {}
    steps = [processor, *processor.get("processors", [])]
    return bos is not None and any(bos in (step.get("special_tokens") or {}) for step in steps)
