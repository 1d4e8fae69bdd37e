"""How many weights an architecture has, and of which kinds, in closed form from the facts of its config.json.

Imports no ML library. The kinds are those that passes treat apart: rows of the token embedding, the output head, matrices of
linear layers, kernels of convolutions, and the rest (norms, biases, positions), which stays in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from runner.errors import RecipeError


@dataclass(frozen=True)
class WeightCount:
    """Numbers of weights by kind; what is tied counts once, as embedding.

    Attributes:
        embedding: rows of the token embedding times its width.
        head: the output projection over the vocabulary, where it is a matrix of its own.
        linear: matrices of linear layers.
        convolution: kernels of convolutions.
        rest: norms, biases, positions.
        tied: the head is the embedding.
    """

    embedding: int = 0
    head: int = 0
    linear: int = 0
    convolution: int = 0
    rest: int = 0
    tied: bool = False

    @property
    def total(self) -> int:
        """Returns the number of all weights."""
        return self.embedding + self.head + self.linear + self.convolution + self.rest


@cache
def count_weights(model: str, task: str) -> WeightCount | None:
    """Returns the weights of a model id that the tables of architectures know in full; None of any other.

    Args:
        model: a Hugging Face id, or a folder with a config.json.
        task: Hugging Face task, which decides the head.
    """
    if model in DRAWING:
        return add_up(*DRAWING[model].values())
    from runner.models.twin import architecture_of  # brings the tables of architectures

    try:
        architecture = architecture_of(model)
    except RecipeError:
        return None
    count = _ARCHITECTURES.get(architecture.model_type)
    if count is None or architecture.stands_in:
        return None
    try:
        return count(architecture.model_type, architecture.facts, task)
    except KeyError:  # a fact is not known
        return None


def is_plain_decoder(model_type: str) -> bool:
    """Says whether an architecture is a decoder of attention and one feed-forward part a layer, without experts."""
    return model_type in _DECODERS


def add_up(*parts: WeightCount) -> WeightCount:
    """Returns the weights of parts together."""
    return WeightCount(
        sum(part.embedding for part in parts),
        sum(part.head for part in parts),
        sum(part.linear for part in parts),
        sum(part.convolution for part in parts),
        sum(part.rest for part in parts),
        any(part.tied for part in parts),
    )


# --- decoders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """What differs between decoders' layers.

    Attributes:
        norms: norms as wide as the model, a layer.
        head_norms: queries and keys are normalised head by head.
        wide_norms: queries and keys are normalised over all heads.
        biased: queries, keys and values have biases.
        feed_forward: matrices of the feed-forward part.
        norm_weights: weights of a norm by its width; 2 with a bias, 0 without any.
    """

    norms: int = 2
    head_norms: bool = False
    wide_norms: bool = False
    biased: bool = False
    feed_forward: int = 3
    norm_weights: int = 1


_DECODERS: Mapping[str, _Block] = {
    "ernie4_5": _Block(),
    "gemma": _Block(),
    "gemma2": _Block(norms=4),
    "gemma3_text": _Block(norms=4, head_norms=True),
    "granite": _Block(),
    "hunyuan_v1_dense": _Block(head_norms=True),
    "llama": _Block(),
    "mistral": _Block(),
    "nemotron": _Block(feed_forward=2, norm_weights=2),
    "olmo": _Block(norm_weights=0),
    "olmo2": _Block(wide_norms=True),
    "olmo3": _Block(wide_norms=True),
    "phi3": _Block(),
    "qwen2": _Block(biased=True),
    "qwen3": _Block(head_norms=True),
    "smollm3": _Block(),
}


def _decoder(model_type: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    block = _DECODERS[model_type]
    layers, hidden, heads = facts["num_hidden_layers"], facts["hidden_size"], facts["num_attention_heads"]
    shared = facts["num_key_value_heads"]
    width = facts.get("head_dim") or hidden // heads
    attention = 2 * hidden * heads * width + 2 * hidden * shared * width
    rest = block.norms * block.norm_weights * hidden
    if block.head_norms:
        rest += 2 * width
    if block.wide_norms:
        rest += (heads + shared) * width
    if block.biased:
        rest += (heads + 2 * shared) * width
    embedding = facts["vocab_size"] * hidden
    tied = bool(facts["tie_word_embeddings"])
    return WeightCount(
        embedding,
        0 if tied or task == "feature-extraction" else embedding,
        layers * (attention + block.feed_forward * hidden * facts["intermediate_size"]),
        rest=layers * rest + block.norm_weights * hidden,
        tied=tied,
    )


# --- encoders ----------------------------------------------------------------------------------------------------------


def _tower(layers: int, hidden: int, inner: int, attentions: int = 1, key_bias: bool = True) -> WeightCount:
    """Layers of plain attention and a feed-forward part of two matrices, with a norm before or behind each."""
    attention_biases = (4 if key_bias else 3) * hidden
    linear = attentions * 4 * hidden * hidden + 2 * hidden * inner
    rest = attentions * attention_biases + inner + hidden + (attentions + 1) * 2 * hidden
    return WeightCount(linear=layers * linear, rest=layers * rest)


_SEGMENTS = {"bert": 2, "roberta": 1, "xlm-roberta": 1, "distilbert": 0}


def _text_encoder(model_type: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    hidden = facts.get("hidden_size") or facts["dim"]
    layers = facts.get("num_hidden_layers") or facts["n_layers"]
    rows = facts["vocab_size"]
    inner = facts.get("intermediate_size") or facts["hidden_dim"]
    positions = facts.get("max_position_embeddings", 512)
    embeddings = WeightCount(rows * hidden, rest=(positions + _SEGMENTS[model_type] + 2) * hidden)
    return add_up(
        embeddings, _tower(layers, hidden, inner), _text_head(model_type, hidden, rows, facts.get("num_labels", 2), task)
    )


def _text_head(model_type: str, hidden: int, rows: int, labels: int, task: str) -> WeightCount:
    dense = WeightCount(linear=hidden * hidden, rest=hidden)
    classifier = WeightCount(linear=hidden * labels, rest=labels)
    if task == "fill-mask":
        return add_up(dense, WeightCount(rest=2 * hidden + rows, tied=True))
    if task in ("text-classification", "sequence-classification", "zero-shot-classification"):
        return add_up(dense, classifier)
    if task in ("token-classification", "question-answering"):
        return classifier
    return WeightCount() if model_type == "distilbert" else dense


def _vit(_: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    hidden = facts["hidden_size"]
    patches = (facts["image_size"] // facts["patch_size"]) ** 2
    stem = WeightCount(convolution=3 * facts["patch_size"] ** 2 * hidden, rest=(1 + 1 + patches + 1 + 2) * hidden)
    if task == "image-classification":
        head = WeightCount(linear=hidden * facts["num_labels"], rest=facts["num_labels"])
    else:
        head = WeightCount(linear=hidden * hidden, rest=hidden)
    return add_up(stem, _tower(facts["num_hidden_layers"], hidden, facts["intermediate_size"]), head)


def _dinov2(_: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    hidden, layers = facts["hidden_size"], facts["num_hidden_layers"]
    patches = (facts["image_size"] // facts["patch_size"]) ** 2
    stem = WeightCount(convolution=3 * facts["patch_size"] ** 2 * hidden, rest=(1 + 2 + patches + 1 + 2) * hidden)
    scales = WeightCount(rest=2 * layers * hidden)
    return add_up(stem, _tower(layers, hidden, facts["mlp_ratio"] * hidden), scales)


def _clip(_: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    text, vision, joint = facts["text_config"], facts["vision_config"], facts["projection_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    seen, read = vision["hidden_size"], text["hidden_size"]
    return add_up(
        WeightCount(text["vocab_size"] * read, rest=(text["max_position_embeddings"] + 2) * read),
        _tower(text["num_hidden_layers"], read, text["intermediate_size"]),
        WeightCount(convolution=3 * vision["patch_size"] ** 2 * seen, rest=(1 + patches + 1 + 4) * seen),
        _tower(vision["num_hidden_layers"], seen, vision["intermediate_size"]),
        WeightCount(linear=(seen + read) * joint, rest=1),
    )


def _whisper(_: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    width = facts["d_model"]
    kernels = 3 * width * (facts["num_mel_bins"] + width)
    return add_up(
        WeightCount(convolution=kernels, rest=(2 + facts["max_source_positions"] + 2) * width),
        _tower(facts["encoder_layers"], width, facts["encoder_ffn_dim"], key_bias=False),
        WeightCount(facts["vocab_size"] * width, rest=(facts["max_target_positions"] + 2) * width, tied=True),
        _tower(facts["decoder_layers"], width, facts["decoder_ffn_dim"], attentions=2, key_bias=False),
    )


# --- convolutions ------------------------------------------------------------------------------------------------------


def _resnet(_: str, facts: Mapping[str, Any], task: str) -> WeightCount:
    stem = facts["embedding_size"]
    kernels, normalised = 7 * 7 * 3 * stem, stem
    before = stem
    for width, depth in zip(facts["hidden_sizes"], facts["depths"], strict=True):
        for layer in range(depth):
            source = before if layer == 0 else width
            inner = width // 4 if facts["layer_type"] == "bottleneck" else width
            if facts["layer_type"] == "bottleneck":
                kernels += source * inner + 9 * inner * inner + inner * width
                normalised += 2 * inner + width
            else:
                kernels += 9 * source * width + 9 * width * width
                normalised += 2 * width
            if source != width or (layer == 0 and before != stem):
                kernels += source * width
                normalised += width
        before = width
    labels = facts["num_labels"]
    head = WeightCount(linear=before * labels, rest=labels) if task == "image-classification" else WeightCount()
    return add_up(WeightCount(convolution=kernels, rest=2 * normalised), head)


_ARCHITECTURES: Mapping[str, Callable[[str, Mapping[str, Any], str], WeightCount]] = {
    **dict.fromkeys(_DECODERS, _decoder),
    **dict.fromkeys(_SEGMENTS, _text_encoder),
    "clip": _clip,
    "dinov2": _dinov2,
    "resnet": _resnet,
    "vit": _vit,
    "whisper": _whisper,
}

# --- pipelines that draw -----------------------------------------------------------------------------------------------

_CLIP_L = WeightCount(37_945_344, 0, 84_934_656, 0, 180_480)
_CLIP_G = WeightCount(63_242_240, 0, 630_784_000, 0, 633_600)
_VAE = WeightCount(0, 0, 2_097_152, 81_490_768, 65_943)
_UNET = WeightCount(0, 0, 270_049_280, 589_027_840, 443_844)
_UNET_XL = WeightCount(0, 0, 2_232_647_680, 333_232_640, 1_583_364)

# Folders of a pipeline's components -> their weights, counted on diffusers' and transformers' modules.
DRAWING: Mapping[str, Mapping[str, WeightCount]] = {
    "CompVis/stable-diffusion-v1-4": {"text_encoder": _CLIP_L, "unet": _UNET, "vae": _VAE},
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "unet": _UNET_XL,
        "vae": _VAE,
    },
}
