"""Which architecture a published language model's id stands for, with the facts of its config.json that shape its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.models.twin_vocabulary import (
    ALBERT,
    BERT,
    DEBERTA,
    DEEPSEEK,
    DISTILBERT,
    GEMMA,
    GPT_OSS,
    HUNYUAN,
    LFM2,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    OLMO,
    PHI3,
    PHI4,
    PHI4_MINI,
    PLAIN_BYTES,
    QWEN,
    QWEN3,
    ROBERTA,
    SMOLLM,
    T5,
    TINYLLAMA,
    Vocabulary,
)


@dataclass(frozen=True)
class Twin:
    """What is known of a model without loading it.

    Attributes:
        pattern: the table's pattern, or the folder, that the model was found by.
        model_type: transformers' name of the architecture.
        task: its usual Hugging Face task.
        facts: the entries of its config.json that shape its graph; an entry `*_token_id` (or `*_token_index`) may hold the
            token's text.
        vocabulary: its tokenizer; None for images.
        processor: its preprocessor_config.json; None for text.
    """

    pattern: str
    model_type: str
    task: str
    facts: Mapping[str, Any]
    vocabulary: Vocabulary | None = None
    processor: Mapping[str, Any] | None = None

    stands_in: bool = False
    """The id is not in the table: this is the closest architecture of its family."""


Heads = tuple[int, int, int]  # query heads, key-value heads, width of one head

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_TIMES_8 = {**_LLAMA3_ROPE, "factor": 8.0}
_TIMES_32 = {**_LLAMA3_ROPE, "factor": 32.0}
_LONG_ROPE = {
    "type": "longrope",
    "short_factor": [1.0 + at / 48 for at in range(48)],
    "long_factor": [64.0 ** (at / 47) for at in range(48)],
}


def _decoder(
    pattern: str,
    model_type: str,
    words: Vocabulary,
    rows: int,
    layers: int,
    heads: Heads,
    hidden: int,
    feed_forward: int,
    context: int,
    theta: float,
    *,
    tied: bool = False,
    rope: Mapping[str, Any] | None = None,
    **more: Any,
) -> Twin:
    query, key_value, width = heads
    facts: dict[str, Any] = {
        "vocab_size": rows,
        "num_hidden_layers": layers,
        "num_attention_heads": query,
        "num_key_value_heads": key_value,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "max_position_embeddings": context,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
    }
    if query * width != hidden or model_type.startswith(("qwen3", "gemma")):
        facts["head_dim"] = width
    if rope is not None:
        facts["rope_scaling"] = rope
    return Twin(pattern, model_type, "text-generation", {**facts, **more}, words)


_YARN_8 = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.2079441541679836,
}
_YARN_32 = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
_LINEAR_8 = {"rope_type": "linear", "factor": 8.0}
_NTK_ALPHA = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}


def _llama(pattern: str, *shape: Any, **more: Any) -> Twin:
    return _decoder(pattern, "llama", *shape, rms_norm_eps=1e-5, **more)


def _qwen2(pattern: str, *shape: Any, **more: Any) -> Twin:
    return _decoder(pattern, "qwen2", *shape, **more)


def _qwen3(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int, *, tied: bool = False) -> Twin:
    return _decoder(pattern, "qwen3", QWEN3, 151936, layers, heads, hidden, feed_forward, 40960, 1e6, tied=tied)


def _phi3(pattern: str, *shape: Any, trained: int, **more: Any) -> Twin:
    return _decoder(pattern, "phi3", *shape, rms_norm_eps=1e-5, original_max_position_embeddings=trained, **more)


def _phi3_long(pattern: str, *shape: Any, **more: Any) -> Twin:
    return _phi3(pattern, *shape, 131072, 1e4, trained=4096, rope=_LONG_ROPE, sliding_window=262144, **more)


def _gemma2(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int, scalar: int = 256) -> Twin:
    return _decoder(
        pattern, "gemma2", GEMMA, 256000, layers, heads, hidden, feed_forward, 8192, 1e4, tied=True,
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=scalar, sliding_window=4096,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _gemma3(
    pattern: str, rows: int, layers: int, heads: Heads, hidden: int, feed_forward: int, *, window: int, context: int,
    rope: Mapping[str, Any] | None = None,
) -> Twin:  # fmt: skip
    return _decoder(
        pattern, "gemma3_text", GEMMA, rows, layers, heads, hidden, feed_forward, context, 1e6, tied=True, rope=rope,
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, sliding_window=window, rope_local_base_freq=1e4,
        layer_types=[*["sliding_attention"] * 5, "full_attention"],
    )  # fmt: skip


def _mistral(pattern: str, rows: int, layers: int, hidden: int, context: int, theta: float, window: int | None = None) -> Twin:
    shape = (MISTRAL, rows, layers, (32, 8, 128), hidden, 14336, context, theta)
    return _decoder(pattern, "mistral", *shape, sliding_window=window, rms_norm_eps=1e-5)


def _olmo3(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int) -> Twin:
    return _decoder(
        pattern, "olmo3", OLMO, 100278, layers, heads, hidden, feed_forward, 65536, 5e5, rope=_YARN_8,
        sliding_window=4096, rms_norm_eps=1e-6,
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
    )  # fmt: skip


def _olmo2(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int) -> Twin:
    return _decoder(pattern, "olmo2", OLMO, 100352, layers, heads, hidden, feed_forward, 4096, 5e5, rms_norm_eps=1e-6)


def _hunyuan(pattern: str, rows: int, layers: int, heads: Heads, hidden: int, feed_forward: int) -> Twin:
    return _decoder(
        pattern, "hunyuan_v1_dense", HUNYUAN, rows, layers, heads, hidden, feed_forward, 262144, 1e4, tied=True,
        rope=_NTK_ALPHA, head_dim=heads[2], rms_norm_eps=1e-5,
    )  # fmt: skip


def _lfm2(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int, adjusted: bool = True) -> Twin:
    return _decoder(
        pattern, "lfm2", LFM2, 65536, layers, heads, hidden, feed_forward, 128000, 1e6, tied=True, norm_eps=1e-5,
        conv_L_cache=3, conv_bias=False, block_auto_adjust_ff_dim=adjusted, block_multiple_of=256, block_ffn_dim_multiplier=1.0,
        layer_types=["conv", "conv", "full_attention"],
    )  # fmt: skip


def _granite(
    pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int, theta: float, attention: float, logits: float
) -> Twin:
    return _decoder(
        pattern, "granite", PLAIN_BYTES, 49155, layers, heads, hidden, feed_forward, 131072, theta, tied=True,
        embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=attention, logits_scaling=logits,
        rms_norm_eps=1e-5,
    )  # fmt: skip


def _ernie45(pattern: str, layers: int, heads: Heads, hidden: int, feed_forward: int) -> Twin:
    return _decoder(
        pattern, "ernie4_5", LLAMA2, 103424, layers, heads, hidden, feed_forward, 131072, 5e5, tied=True, head_dim=heads[2],
        rms_norm_eps=1e-5,
    )  # fmt: skip


def _gpt_oss(pattern: str, layers: int, experts: int) -> Twin:
    return _decoder(
        pattern, "gpt_oss", GPT_OSS, 201088, layers, (64, 8, 64), 2880, 2880, 131072, 1.5e5, rope=_YARN_32,
        num_local_experts=experts, num_experts_per_tok=4, sliding_window=128, rms_norm_eps=1e-5,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _gpt2(pattern: str, layers: int, heads: int, hidden: int) -> Twin:
    shape = {"n_head": heads, "n_embd": hidden, "n_layer": layers, "n_positions": 1024, "tie_word_embeddings": True}
    return Twin(pattern, "gpt2", "text-generation", {**shape, "vocab_size": 50257}, PLAIN_BYTES)


def _encoder(
    pattern: str, model_type: str, words: Vocabulary, rows: int, task: str, layers: int, heads: int, hidden: int, **more: Any
) -> Twin:
    facts = {
        "vocab_size": rows,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
    }
    return Twin(pattern, model_type, task, {**facts, **more}, words)


def _distilbert(pattern: str, task: str) -> Twin:
    return Twin(
        pattern,
        "distilbert",
        task,
        {"n_heads": 12, "dim": 768, "hidden_dim": 3072, "n_layers": 6, "vocab_size": 30522},
        DISTILBERT,
    )


_OFFSET_POSITIONS = {"max_position_embeddings": 514, "type_vocab_size": 1}
_DISENTANGLED = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": -1,
    "type_vocab_size": 0,
}
_DEBERTA_V3 = {
    **_DISENTANGLED,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 256,
}

_TANH: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh"}

LANGUAGE_MODELS: tuple[Twin, ...] = (
    # vocabulary, its rows, layers, (query heads, key-value heads, head width), hidden size, feed-forward size, context, base of
    # the rotation
    _llama("HuggingFaceTB/SmolLM2-135M*", SMOLLM, 49152, 30, (9, 3, 64), 576, 1536, 8192, 1e5, tied=True),
    _llama("HuggingFaceTB/SmolLM2-360M*", SMOLLM, 49152, 32, (15, 5, 64), 960, 2560, 8192, 1e5, tied=True),
    _llama("HuggingFaceTB/SmolLM2-1.7B*", SMOLLM, 49152, 24, (32, 32, 64), 2048, 8192, 8192, 1.3e5, tied=True),
    _llama("TinyLlama/TinyLlama-1.1B*", TINYLLAMA, 32000, 22, (32, 4, 64), 2048, 5632, 2048, 1e4),
    _llama("meta-llama/Llama-2-7b*", LLAMA2, 32000, 32, (32, 32, 128), 4096, 11008, 4096, 1e4),
    _llama("meta-llama/Llama-2-13b*", LLAMA2, 32000, 40, (40, 40, 128), 5120, 13824, 4096, 1e4),
    _llama("meta-llama/Llama-2-70b*", LLAMA2, 32000, 80, (64, 8, 128), 8192, 28672, 4096, 1e4),
    _llama("meta-llama/Meta-Llama-3-8B*", LLAMA3, 128256, 32, (32, 8, 128), 4096, 14336, 8192, 5e5),
    _llama("meta-llama/Meta-Llama-3-70B*", LLAMA3, 128256, 80, (64, 8, 128), 8192, 28672, 8192, 5e5),
    _llama("meta-llama/*Llama-3.1-8B*", LLAMA3, 128256, 32, (32, 8, 128), 4096, 14336, 131072, 5e5, rope=_TIMES_8),
    _llama("meta-llama/*Llama-3.[13]-70B*", LLAMA3, 128256, 80, (64, 8, 128), 8192, 28672, 131072, 5e5, rope=_TIMES_8),
    _llama("meta-llama/Llama-3.2-1B*", LLAMA3, 128256, 16, (32, 8, 64), 2048, 8192, 131072, 5e5, rope=_TIMES_32, tied=True),
    _llama("meta-llama/Llama-3.2-3B*", LLAMA3, 128256, 28, (24, 8, 128), 3072, 8192, 131072, 5e5, rope=_TIMES_32, tied=True),
    _llama(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B*", DEEPSEEK, 128256, 32, (32, 8, 128), 4096, 14336, 131072, 5e5,
        rope=_TIMES_8,
    ),
    _llama(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B*", DEEPSEEK, 128256, 80, (64, 8, 128), 8192, 28672, 131072, 5e5,
        rope=_TIMES_8,
    ),
    _decoder(
        "HuggingFaceTB/SmolLM3-3B*", "smollm3", SMOLLM, 128256, 36, (16, 4, 128), 2048, 11008, 65536, 5e6, tied=True,
        no_rope_layers=[1, 1, 1, 0],
    ),
    _qwen2("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B*", DEEPSEEK, 151936, 28, (12, 2, 128), 1536, 8960, 131072, 1e4),
    _qwen2("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B*", DEEPSEEK, 152064, 28, (28, 4, 128), 3584, 18944, 131072, 1e4),
    _qwen2("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B*", DEEPSEEK, 152064, 48, (40, 8, 128), 5120, 13824, 131072, 1e6),
    _qwen2("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B*", DEEPSEEK, 152064, 64, (40, 8, 128), 5120, 27648, 131072, 1e6),
    _qwen2("Qwen/Qwen1.5-0.5B*", QWEN, 151936, 24, (16, 16, 64), 1024, 2816, 32768, 1e6, tied=True),
    _qwen2("Qwen/Qwen1.5-1.8B*", QWEN, 151936, 24, (16, 16, 128), 2048, 5504, 32768, 1e6),
    _qwen2("Qwen/Qwen1.5-4B*", QWEN, 151936, 40, (20, 20, 128), 2560, 6912, 32768, 5e6),
    _qwen2("Qwen/Qwen1.5-7B*", QWEN, 151936, 32, (32, 32, 128), 4096, 11008, 32768, 1e6),
    _qwen2("Qwen/Qwen2*-0.5B*", QWEN, 151936, 24, (14, 2, 64), 896, 4864, 32768, 1e6, tied=True),
    _qwen2("Qwen/Qwen2*-1.5B*", QWEN, 151936, 28, (12, 2, 128), 1536, 8960, 32768, 1e6, tied=True),
    _qwen2("Qwen/Qwen2.5*-3B*", QWEN, 151936, 36, (16, 2, 128), 2048, 11008, 32768, 1e6, tied=True),
    _qwen2("Qwen/Qwen2*-7B*", QWEN, 152064, 28, (28, 4, 128), 3584, 18944, 32768, 1e6),
    _qwen2("Qwen/Qwen2.5*-14B*", QWEN, 152064, 48, (40, 8, 128), 5120, 13824, 32768, 1e6),
    _qwen2("Qwen/Qwen2.5*-32B*", QWEN, 152064, 64, (40, 8, 128), 5120, 27648, 32768, 1e6),
    # layers, (query heads, key-value heads, head width), hidden size, feed-forward size
    _qwen3("Qwen/Qwen3-*0.6B*", 28, (16, 8, 128), 1024, 3072, tied=True),
    _qwen3("Qwen/Qwen3-1.7B*", 28, (16, 8, 128), 2048, 6144, tied=True),
    _qwen3("Qwen/Qwen3-14B*", 40, (40, 8, 128), 5120, 17408),
    _qwen3("Qwen/Qwen3-*4B*", 36, (32, 8, 128), 2560, 9728, tied=True),
    _qwen3("Qwen/Qwen3-*8B*", 36, (32, 8, 128), 4096, 12288),
    _qwen3("Qwen/Qwen3-32B*", 64, (64, 8, 128), 5120, 25600),
    # vocabulary, its rows, layers, heads, hidden size, feed-forward size, context, base of the rotation
    _phi3(
        "microsoft/Phi-3-mini-4k*", PHI3, 32064, 32, (32, 32, 96), 3072, 8192, 4096, 1e4, trained=4096, sliding_window=2047,
    ),
    _phi3(
        "microsoft/Phi-3-medium-4k*", PHI3, 32064, 40, (40, 10, 128), 5120, 17920, 4096, 1e4, trained=4096, sliding_window=2047,
    ),
    _phi3(
        "microsoft/Phi-4-reasoning*", PHI4, 100352, 40, (40, 10, 128), 5120, 17920, 32768, 5e5, trained=32768,
        sliding_window=None,
    ),
    _phi3_long("microsoft/Phi-3-mini-128k*", PHI3, 32064, 32, (32, 32, 96), 3072, 8192),
    _phi3_long("microsoft/Phi-3.5-mini*", PHI3, 32064, 32, (32, 32, 96), 3072, 8192),
    _phi3_long("microsoft/Phi-3-medium-128k*", PHI3, 32064, 40, (40, 10, 128), 5120, 17920),
    _phi3_long("microsoft/Phi-4-mini*", PHI4_MINI, 200064, 32, (24, 8, 128), 3072, 8192, partial_rotary_factor=0.75, tied=True),
    _phi3("microsoft/Phi-4*", PHI4, 100352, 40, (40, 10, 128), 5120, 17920, 16384, 2.5e5, trained=16384, sliding_window=None),
    # rows of the vocabulary (Gemma 3), layers, heads, hidden size, feed-forward size
    _gemma2("google/gemma-2-2b*", 26, (8, 4, 256), 2304, 9216),
    _gemma2("google/gemma-2-9b*", 42, (16, 8, 256), 3584, 14336),
    _gemma2("google/gemma-2-27b*", 46, (32, 16, 128), 4608, 36864, scalar=144),
    _gemma3("google/gemma-3-270m*", 262144, 18, (4, 1, 256), 640, 2048, window=512, context=32768),
    _gemma3("google/gemma-3-1b*", 262144, 26, (4, 1, 256), 1152, 6912, window=512, context=32768),
    _gemma3("google/gemma-3-4b*", 262208, 34, (8, 4, 256), 2560, 10240, window=1024, context=131072, rope=_LINEAR_8),
    # rows of the vocabulary, layers, hidden size, context, base of the rotation
    _mistral("mistralai/Mistral-7B-*v0.1", 32000, 32, 4096, 32768, 1e4, window=4096),
    _mistral("mistralai/Mistral-7B-*v0.2", 32000, 32, 4096, 32768, 1e6),
    _mistral("mistralai/Mistral-7B-*v0.3", 32768, 32, 4096, 32768, 1e6),
    _mistral("mistralai/Mistral-Nemo*", 131072, 40, 5120, 131072, 1e6),
    # layers, heads, hidden size, feed-forward size
    _olmo3("allenai/Olmo-3*-7B*", 32, (32, 32, 128), 4096, 11008),
    _olmo3("allenai/Olmo-3*-32B*", 64, (40, 8, 128), 5120, 27648),
    _olmo2("allenai/OLMo-2*-1B*", 16, (16, 16, 128), 2048, 8192),
    _olmo2("allenai/OLMo-2*-7B*", 32, (32, 32, 128), 4096, 11008),
    _olmo2("allenai/OLMo-2*-13B*", 40, (40, 40, 128), 5120, 13824),
    _decoder("allenai/OLMo-1B*", "olmo", OLMO, 50304, 16, (16, 16, 128), 2048, 8192, 2048, 1e4, tied=True),
    _decoder("amd/AMD-OLMo-1B*", "olmo", OLMO, 50304, 16, (16, 16, 128), 2048, 8192, 2048, 1e4, tied=True),
    _decoder("allenai/OLMo-7B*", "olmo", OLMO, 50304, 32, (32, 32, 128), 4096, 11008, 2048, 1e4),
    _hunyuan("tencent/HY-MT1.5-1.8B*", 120818, 32, (16, 4, 128), 2048, 6144),
    _hunyuan("tencent/HY-MT1.5-7B*", 128167, 32, (32, 8, 128), 4096, 14336),
    _hunyuan("tencent/Hunyuan-1.8B*", 120818, 32, (16, 4, 128), 2048, 6144),
    _hunyuan("tencent/Hunyuan-7B*", 128167, 32, (32, 8, 128), 4096, 14336),
    _lfm2("LiquidAI/LFM2*-350M*", 16, (16, 8, 64), 1024, 6656),
    _lfm2("LiquidAI/LFM2*-700M*", 16, (24, 8, 64), 1536, 10240),
    _lfm2("LiquidAI/LFM2*-1.2B*", 16, (32, 8, 64), 2048, 12288),
    _lfm2("LiquidAI/LFM2*-2.6B*", 30, (32, 8, 64), 2048, 10752, adjusted=False),
    _ernie45("baidu/ERNIE-4.5-0.3B*", 18, (16, 2, 128), 1024, 3072),
    _gpt_oss("openai/gpt-oss-20b*", 24, 32),
    _gpt_oss("openai/gpt-oss-120b*", 36, 128),
    _granite("ibm-granite/granite-3.*-2b*", 40, (32, 8, 64), 2048, 8192, 5e6, 0.015625, 8.0),
    _granite("ibm-granite/granite-3.*-8b*", 40, (32, 8, 128), 4096, 12800, 1e7, 0.0078125, 16.0),
    _decoder("google/gemma-2b*", "gemma", GEMMA, 256000, 18, (8, 1, 256), 2048, 16384, 8192, 1e4, tied=True, **_TANH),
    _decoder("google/gemma-7b*", "gemma", GEMMA, 256000, 28, (16, 16, 256), 3072, 24576, 8192, 1e4, tied=True, **_TANH),
    _decoder(
        "nvidia/*Minitron-4B*", "nemotron", LLAMA2, 256000, 32, (24, 8, 128), 3072, 9216, 4096, 1e4, head_dim=128,
        partial_rotary_factor=0.5, hidden_act="relu2", norm_eps=1e-5,
    ),
    _decoder(
        "nvidia/Nemotron-Mini-4B*", "nemotron", LLAMA2, 256000, 32, (24, 8, 128), 3072, 9216, 4096, 1e4, head_dim=128,
        partial_rotary_factor=0.5, hidden_act="relu2", norm_eps=1e-5,
    ),
    # the language part of a model that also reads videos; its own code is not in transformers
    _qwen2("OpenGVLab/VideoChat-Flash-Qwen2_5-7B*", QWEN, 152064, 28, (28, 4, 128), 3584, 18944, 32768, 1e6),
    _llama("codellama/CodeLlama-7b*", LLAMA2, 32016, 32, (32, 32, 128), 4096, 11008, 16384, 1e6),
    _decoder(
        "microsoft/phi-2*", "phi", PLAIN_BYTES, 51200, 32, (32, 32, 80), 2560, 10240, 2048, 1e4, partial_rotary_factor=0.4,
    ),
    _decoder("microsoft/phi-1*", "phi", PLAIN_BYTES, 51200, 24, (32, 32, 64), 2048, 8192, 2048, 1e4, partial_rotary_factor=0.5),
    _gpt2("sshleifer/tiny-gpt2", 2, 2, 2),
    _gpt2("openai-community/gpt2", 12, 12, 768),
    _gpt2("openai-community/gpt2-medium", 24, 16, 1024),
    _gpt2("distilbert/distilgpt2", 6, 12, 768),
    Twin(
        "facebook/opt-125m", "opt", "text-generation",
        {"vocab_size": 50272, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "ffn_dim": 3072,
         "word_embed_proj_dim": 768, "max_position_embeddings": 2048, "tie_word_embeddings": True},
        ROBERTA,
    ),
    Twin(
        "google-t5/t5-small", "t5", "text2text-generation",
        {"num_heads": 8, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6,
         "vocab_size": 32128, "tie_word_embeddings": True},
        T5,
    ),
    # architecture, vocabulary, its rows, task, layers, heads, hidden size
    _encoder("Intel/bert-base-uncased-mrpc", "bert", BERT, 30522, "text-classification", 12, 12, 768),
    _encoder("*/bert-base-multilingual-cased*", "bert", BERT, 119547, "fill-mask", 12, 12, 768),
    _encoder("*/bert-base-multilingual-uncased*", "bert", BERT, 105879, "fill-mask", 12, 12, 768),
    _encoder("*/bert-base-chinese*", "bert", BERT, 21128, "fill-mask", 12, 12, 768),
    _encoder("*/bert-base-cased*", "bert", BERT, 28996, "fill-mask", 12, 12, 768),
    _encoder("*/bert-base-*", "bert", BERT, 30522, "fill-mask", 12, 12, 768),
    _encoder("*/bert-large-cased*", "bert", BERT, 28996, "fill-mask", 24, 16, 1024),
    _encoder("*/bert-large-*", "bert", BERT, 30522, "fill-mask", 24, 16, 1024),
    _encoder("sentence-transformers/all-MiniLM-L12*", "bert", BERT, 30522, "feature-extraction", 12, 12, 384),
    _encoder("sentence-transformers/all-MiniLM-L*", "bert", BERT, 30522, "feature-extraction", 6, 12, 384),
    _encoder("BAAI/bge-small-*", "bert", BERT, 30522, "feature-extraction", 12, 12, 384),
    _encoder("BAAI/bge-base-*", "bert", BERT, 30522, "feature-extraction", 12, 12, 768),
    _encoder("intfloat/e5-small*", "bert", BERT, 30522, "feature-extraction", 12, 12, 384),
    _encoder("FacebookAI/roberta-base*", "roberta", ROBERTA, 50265, "fill-mask", 12, 12, 768, **_OFFSET_POSITIONS),
    _encoder("FacebookAI/roberta-large*", "roberta", ROBERTA, 50265, "fill-mask", 24, 16, 1024, **_OFFSET_POSITIONS),
    _encoder("FacebookAI/xlm-roberta-base*", "xlm-roberta", ROBERTA, 250002, "fill-mask", 12, 12, 768, **_OFFSET_POSITIONS),
    _encoder("FacebookAI/xlm-roberta-large*", "xlm-roberta", ROBERTA, 250002, "fill-mask", 24, 16, 1024, **_OFFSET_POSITIONS),
    _encoder("intfloat/multilingual-e5-small*", "bert", BERT, 250037, "feature-extraction", 12, 12, 384),
    _encoder(
        "sentence-transformers/all-mpnet-base*", "mpnet", ROBERTA, 30527, "feature-extraction", 12, 12, 768,
        max_position_embeddings=514,
    ),
    _encoder(
        "microsoft/deberta-base-mnli*", "deberta", DEBERTA, 50265, "text-classification", 12, 12, 768, num_labels=3,
        **_DISENTANGLED,
    ),
    _encoder("microsoft/deberta-base*", "deberta", DEBERTA, 50265, "fill-mask", 12, 12, 768, **_DISENTANGLED),
    _encoder("microsoft/deberta-v3-base*", "deberta-v2", DEBERTA, 128100, "fill-mask", 12, 12, 768, **_DEBERTA_V3),
    _encoder("microsoft/deberta-v3-small*", "deberta-v2", DEBERTA, 128100, "fill-mask", 6, 12, 768, **_DEBERTA_V3),
    _encoder(
        "albert/albert-base-v2*", "albert", ALBERT, 30000, "fill-mask", 12, 12, 768, embedding_size=128, hidden_act="gelu_new",
    ),
    _encoder(
        "google/electra-small-discriminator*", "electra", BERT, 30522, "feature-extraction", 12, 4, 256, embedding_size=128,
    ),
    _encoder(
        "google/electra-base-discriminator*", "electra", BERT, 30522, "feature-extraction", 12, 12, 768, embedding_size=768,
    ),
    _distilbert("distilbert/distilbert-base-*sst-2-english", "text-classification"),
    _distilbert("distilbert/distilbert-base-*", "fill-mask"),
)  # fmt: skip
