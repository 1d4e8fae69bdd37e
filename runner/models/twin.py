"""Tiny twins: which architecture a model id stands for, and the same architecture with two small layers.

A twin keeps what decides the shape of a graph (attention heads per key-value head, kind of rotary embedding, tied or
separate embeddings, activation, normalisation, window layers) and shrinks what decides its size. Imports no ML
library.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem, did_you_mean
from runner.models.checkpoint import read_json
from runner.models.twin_table import LANGUAGE_MODELS, Twin
from runner.models.twin_table_media import MEDIA_MODELS
from runner.models.twin_vocabulary import Style, Vocabulary

# The first pattern that fits an id counts. An id of another owner is looked up by its name alone.
KNOWN: tuple[Twin, ...] = (*MEDIA_MODELS, *LANGUAGE_MODELS)

# Words in the name of a model that is not in the table -> the id whose architecture stands in. The first word found counts.
_FAMILIES = {
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "smollm": "HuggingFaceTB/SmolLM2-135M",
    "qwen3.5": "Qwen/Qwen3.5-2B",
    "qwen3.6": "Qwen/Qwen3.5-2B",
    "qwen3-vl": "Qwen/Qwen3-VL-2B",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-3B",
    "qwen3": "Qwen/Qwen3-1.7B",
    "qwen2.5": "Qwen/Qwen2.5-1.5B",
    "qwen": "Qwen/Qwen2.5-1.5B",
    "tinyllama": "TinyLlama/TinyLlama-1.1B",
    "llama-2": "meta-llama/Llama-2-7b",
    "llama2": "meta-llama/Llama-2-7b",
    "llama-3.2": "meta-llama/Llama-3.2-1B",
    "codellama": "codellama/CodeLlama-7b",
    "vicuna": "meta-llama/Llama-2-7b",
    "llama": "meta-llama/Llama-3.1-8B",
    "phi-4-mini": "microsoft/Phi-4-mini",
    "phi-3.5": "microsoft/Phi-3.5-mini",
    "phi-3": "microsoft/Phi-3-mini-4k",
    "phi3": "microsoft/Phi-3-mini-4k",
    "phi-2": "microsoft/phi-2",
    "phi-1": "microsoft/phi-1",
    "phi": "microsoft/Phi-4",
    "translategemma": "google/translategemma-4b",
    "gemma-3": "google/gemma-3-1b",
    "gemma-2": "google/gemma-2-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma": "google/gemma-3-1b",
    "ministral": "mistralai/Ministral-3-3B",
    "mistral": "mistralai/Mistral-7B-v0.3",
    "zephyr": "mistralai/Mistral-7B-v0.1",
    "olmo-3": "allenai/Olmo-3-7B",
    "olmo-2": "allenai/OLMo-2-1B",
    "olmo": "allenai/OLMo-1B",
    "hy-mt": "tencent/HY-MT1.5-1.8B",
    "hunyuan": "tencent/HY-MT1.5-1.8B",
    "lfm2": "LiquidAI/LFM2-350M",
    "ernie-4.5": "baidu/ERNIE-4.5-0.3B",
    "gpt-oss": "openai/gpt-oss-20b",
    "granite": "ibm-granite/granite-3.3-2b",
    "nemotron": "nvidia/Nemotron-Mini-4B",
    "minitron": "nvidia/Nemotron-Mini-4B",
    "whisper": "openai/whisper-tiny",
    "distilgpt2": "distilbert/distilgpt2",
    "gpt2": "openai-community/gpt2",
    "opt": "facebook/opt-125m",
    "t5": "google-t5/t5-small",
    "deberta-v3": "microsoft/deberta-v3-base",
    "deberta": "microsoft/deberta-base",
    "xlm-roberta": "FacebookAI/xlm-roberta-base",
    "distilroberta": "FacebookAI/roberta-base",
    "roberta": "FacebookAI/roberta-base",
    "distilbert": "distilbert/distilbert-base-uncased",
    "albert": "albert/albert-base-v2",
    "electra": "google/electra-base-discriminator",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
    "minilm": "sentence-transformers/all-MiniLM-L6",
    "bge": "BAAI/bge-small-en",
    "e5": "intfloat/e5-small",
    "gte": "BAAI/bge-small-en",
    "bert": "google-bert/bert-base-uncased",
    "clip": "openai/clip-vit-base-patch32",
    "dinov2": "facebook/dinov2-small",
    "vit": "google/vit-base-patch16-224",
    "deit": "google/vit-base-patch16-224",
    "resnet": "microsoft/resnet-50",
    "convnext": "facebook/convnext-tiny-224",
    "swin": "microsoft/swin-tiny-patch4-window7-224",
    "mobilenet": "google/mobilenet_v2_1.0_224",
    "wav2vec2": "facebook/wav2vec2-base",
    "hubert": "facebook/hubert-base",
    "deepseek": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}
_PLACEHOLDER = re.compile(r"<[^<>]+>|\$\{[^{}]+\}|\{\{[^{}]+\}\}")
_STAND_IN = "meta-llama/Llama-3.2-1B"


def architecture_of(model: str | Path) -> Twin:
    """Returns the facts of a model id that the table knows, or of a local folder with a config.json.

    An id that no pattern fits gets the facts of its family, which a word in the name tells; a placeholder such as
    ``<MODEL_PATH>`` those of a Llama. Both are marked as standing in.

    Raises:
        InvalidRecipe: the id matches no pattern and names no family; names the nearest pattern.
        ModelUnavailable: the folder's config.json or tokenizer.json cannot be read.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return _of_folder(folder)
    name = str(model).lower()
    known = _known(name)
    if known is not None:
        return known
    family = _STAND_IN if _PLACEHOLDER.fullmatch(name) else _family(name)
    if family is not None and (known := _known(family.lower())) is not None:
        return replace(known, stands_in=True)
    raise InvalidRecipe(
        Problem(
            "no-tiny-twin",
            f"no architecture is known for the model id '{model}'",
            remedy=did_you_mean(str(model), [twin.pattern for twin in KNOWN])
            + "; a local folder with a config.json serves as well",
        )
    )


def is_known(model_id: str) -> bool:
    """Says whether the table has facts of a model id."""
    return _known(model_id.lower()) is not None


def _known(name: str) -> Twin | None:
    for twin in (*KNOWN, *(replace(twin, pattern=f"*/{twin.pattern.partition('/')[2]}") for twin in KNOWN)):
        if fnmatch.fnmatchcase(name, twin.pattern.lower()):
            return twin
    return None


def _family(name: str) -> str | None:
    """Returns the id that stands for the family whose word begins a part of the name."""
    return next((id_ for word, id_ in _FAMILIES.items() if re.search(rf"(?<![a-z0-9]){re.escape(word)}", name)), None)


# --- shrinking -------------------------------------------------------------------------------------------------------

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


# --- a local folder --------------------------------------------------------------------------------------------------

_TASK_OF_HEAD = {
    "ForCausalLM": "text-generation",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "T5ForConditionalGeneration": "text2text-generation",
    "ForConditionalGeneration": "image-text-to-text",
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
    for part in ("text_config", "vision_config"):
        if isinstance(facts.get(part), dict):
            kept = {key: value for key, value in facts[part].items() if key == "model_type" or key not in _NOT_SHAPE}
            facts[part] = kept
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
