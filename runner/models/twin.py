"""Tiny twins: which architecture a model id or a local folder stands for. Imports no ML library.

A twin is the same architecture with two small layers. It keeps what decides the shape of a graph: attention heads per
key-value head, kind of rotary embedding, tied or separate embeddings, activation, normalisation, window layers.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem, did_you_mean
from runner.models.checkpoint import read_json
from runner.models.tasks import WITH_PAST, task_of_architecture
from runner.models.twin_table import LANGUAGE_MODELS, Twin
from runner.models.twin_table_media import MEDIA_MODELS
from runner.models.twin_vocabulary import Style, Vocabulary

# The first pattern that fits an id counts. An id of another owner is looked up by its name alone.
KNOWN: tuple[Twin, ...] = (*MEDIA_MODELS, *LANGUAGE_MODELS)

_CONTEXT = ("max_position_embeddings", "n_positions", "max_target_positions")
_CONTEXT_BY_DEFAULT = {"distilbert": 512}  # where config.json need not say it
_POSITIONS_FROM_TWO = ("roberta", "xlm-roberta", "mpnet", "camembert")

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
_WILDCARD = re.compile(r"[*?[]")
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


def architecture_called(model_type: str) -> Twin | None:
    """Returns the facts of the first known model of an architecture, marked as standing in; None where there is none."""
    found = next((twin for twin in KNOWN if twin.model_type == model_type), None)
    return replace(found, stands_in=True) if found else None


def is_known(model_id: str) -> bool:
    """Says whether the table has facts of a model id."""
    return _known(model_id.lower()) is not None


def context_of(twin: Twin) -> int | None:
    """Returns the tokens that a model reads at once, by the positions of its configuration; None where it does not say."""
    facts = twin.facts.get("text_config", twin.facts)
    found = next((int(facts[name]) for name in _CONTEXT if facts.get(name)), _CONTEXT_BY_DEFAULT.get(twin.model_type))
    return found - 2 if found and twin.model_type in _POSITIONS_FROM_TWO else found


def _known(name: str) -> Twin | None:
    if (twin := next((twin for twin in KNOWN if _fits(name, twin.pattern)), None)) is not None:
        return twin
    by_name = ((twin, f"*/{twin.pattern.partition('/')[2]}") for twin in KNOWN)
    return next((replace(twin, pattern=pattern) for twin, pattern in by_name if _fits(name, pattern)), None)


def _fits(name: str, pattern: str) -> bool:
    """Compares what stands before a pattern's first wildcard before its regular expression is made."""
    pattern = pattern.lower()
    return name.startswith(_WILDCARD.split(pattern, 1)[0]) and fnmatch.fnmatchcase(name, pattern)


def _family(name: str) -> str | None:
    """Returns the id that stands for the family whose word begins a part of the name."""
    return next((id_ for word, id_ in _FAMILIES.items() if re.search(rf"(?<![a-z0-9]){re.escape(word)}", name)), None)


# --- a local folder --------------------------------------------------------------------------------------------------

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
    if task := task_of_architecture(named):
        return task.removesuffix(WITH_PAST)
    if named.endswith("ForConditionalGeneration"):
        return "image-text-to-text" if "vision_config" in config else "text2text-generation"
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
