"""The same as `twin_table` for models of images, sound, or text together with either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runner.models.twin_table import Heads, Twin
from runner.models.twin_vocabulary import CLIP, GEMMA_VISION, MISTRAL_VISION, QWEN_VISION, WHISPER, Vocabulary

TowerSize = tuple[int, int, int]  # layers, attention heads, hidden size of a transformer encoder

_SCALED = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_IMAGENET = {**_SCALED, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {**_SCALED, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _tower(layers: int, heads: int, hidden: int) -> dict[str, int]:
    """The size of a transformer encoder."""
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
    }


def _resnet(pattern: str, layer: str, *depths: int) -> Twin:
    widths = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    processor = {
        **_IMAGENET,
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
    }
    shape = {"layer_type": layer, "embedding_size": 64, "hidden_sizes": widths, "depths": list(depths), "num_labels": 1000}
    return Twin(pattern, "resnet", "image-classification", shape, processor=processor)


def _vit(pattern: str, task: str, layers: int, heads: int, hidden: int, **more: Any) -> Twin:
    processor = {**_HALF, "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    shape = {**_tower(layers, heads, hidden), "patch_size": 16, "image_size": 224}
    return Twin(pattern, "vit", task, {**shape, **more}, processor=processor)


def _deit(pattern: str, heads: int) -> Twin:
    """DeiT without a distillation token: a ViT that takes its pictures as convolutional networks do."""
    size = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    processor = {**_IMAGENET, **size, "image_processor_type": "DeiTImageProcessor"}
    return replace(_vit(pattern, "image-classification", 12, heads, 64 * heads, num_labels=1000), processor=processor)


def _dinov2(pattern: str, layers: int, heads: int, hidden: int) -> Twin:
    size = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    processor = {**_IMAGENET, **size, "image_processor_type": "BitImageProcessor"}
    shape = {**_tower(layers, heads, hidden), "mlp_ratio": 4, "patch_size": 14, "image_size": 518}
    del shape["intermediate_size"]  # this architecture derives it
    return Twin(pattern, "dinov2", "image-feature-extraction", shape, processor=processor)


def _whisper(pattern: str, heads: int, encoder: int, decoder: int, rows: int = 51865, mels: int = 80) -> Twin:
    """`encoder` and `decoder`: their layers."""
    width = 64 * heads
    shape = {
        "vocab_size": rows,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        "d_model": width,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": mels,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "decoder_start_token_id": "<|startoftranscript|>",
    }
    processor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": mels,
        "sampling_rate": 16000,
        "chunk_length": 30,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    return Twin(pattern, "whisper", "automatic-speech-recognition", shape, WHISPER, processor)


def _text(
    model_type: str, heads: Heads, hidden: int, feed_forward: int, context: int, rope: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    query, key_value, width = heads
    return {
        "model_type": model_type,
        "num_attention_heads": query,
        "num_key_value_heads": key_value,
        "head_dim": width,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "max_position_embeddings": context,
        "rope_parameters": dict(rope),
        **more,
    }


def _seeing(
    pattern: str,
    model_type: str,
    words: Vocabulary,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    tied: bool,
    **more: Any,
) -> Twin:
    facts = {"text_config": {**text, "tie_word_embeddings": tied}, "vision_config": vision, "tie_word_embeddings": tied, **more}
    return Twin(pattern, model_type, "image-text-to-text", facts, words, _QWEN_PIXELS)


_QWEN_PIXELS = {
    **_HALF,
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_VISION_25 = {
    "hidden_size": 1280,
    "num_heads": 16,
    "depth": 32,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_VISION_3 = {
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}


def _qwen25_vl(pattern: str, heads: Heads, hidden: int, feed_forward: int, tied: bool = False) -> Twin:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _text("qwen2_5_vl_text", heads, hidden, feed_forward, 128000, rope)
    del text["head_dim"]  # this architecture derives it
    return _seeing(pattern, "qwen2_5_vl", QWEN_VISION, text, _VISION_25, tied, **_QWEN_TOKENS)


def _qwen3_vl(pattern: str, heads: Heads, hidden: int, feed_forward: int, tied: bool = False) -> Twin:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = _text("qwen3_vl_text", heads, hidden, feed_forward, 262144, rope)
    vision = {**_VISION_3, "hidden_size": 1152, "depth": 27, "deepstack_visual_indexes": [8, 16, 24]}
    return _seeing(pattern, "qwen3_vl", QWEN_VISION, text, vision, tied, **_QWEN_TOKENS)


def _qwen35(pattern: str, heads: Heads, hidden: int, feed_forward: int, linear: int, tied: bool = False) -> Twin:
    """`linear`: value heads of the linear attention, which has 16 key heads; both are 128 wide."""
    rope = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    text = _text(
        "qwen3_5_text", heads, hidden, feed_forward, 262144, rope, linear_num_key_heads=16, linear_num_value_heads=linear,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
        layer_types=[*["linear_attention"] * 3, "full_attention"],
    )  # fmt: skip
    vision = {**_VISION_3, "hidden_size": 1152, "depth": 27}
    return _seeing(pattern, "qwen3_5", QWEN_VISION, text, vision, tied, **_QWEN_TOKENS)


def _gemma3(pattern: str, heads: Heads, hidden: int, feed_forward: int) -> Twin:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    text = _text(
        "gemma3_text", heads, hidden, feed_forward, 131072, rope, hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256, sliding_window=1024, layer_types=[*["sliding_attention"] * 5, "full_attention"],
    )  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "image_size": 896,
    }
    tokens = {
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
        "image_token_index": "<image_soft_token>",
    }
    return _seeing(pattern, "gemma3", GEMMA_VISION, text, vision, True, mm_tokens_per_image=256, **tokens)


def _ministral3(pattern: str, hidden: int, feed_forward: int, tied: bool = False) -> Twin:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    text = _text("ministral3", (32, 8, 128), hidden, feed_forward, 262144, rope, rms_norm_eps=1e-5)
    vision = {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "head_dim": 64,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "image_size": 1540,
    }
    more = {"image_token_index": "[IMG]", "spatial_merge_size": 2}
    return _seeing(pattern, "mistral3", MISTRAL_VISION, text, vision, tied, **more)


def _clip(pattern: str, patch: int, text_size: TowerSize = (12, 8, 512), vision_size: TowerSize = (12, 12, 768)) -> Twin:
    text = {**_tower(*text_size), "vocab_size": 49408, "max_position_embeddings": 77}
    vision = {**_tower(*vision_size), "patch_size": patch, "image_size": 224}
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    processor = {**_IMAGENET, **size, "image_processor_type": "CLIPImageProcessor"}
    facts = {"text_config": text, "vision_config": vision, "projection_dim": text_size[2]}
    return Twin(pattern, "clip", "zero-shot-image-classification", facts, CLIP, processor)


def _image_net(pattern: str, model_type: str, shape: Mapping[str, Any]) -> Twin:
    processor = {**_IMAGENET, "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    return Twin(pattern, model_type, "image-classification", {**shape, "num_labels": 1000}, processor=processor)


def _sound(pattern: str, model_type: str, heads: int, hidden: int) -> Twin:
    shape = {"num_attention_heads": heads, "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 12}
    processor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16000}
    return Twin(pattern, model_type, "audio-classification", shape, processor=processor)


MEDIA_MODELS: tuple[Twin, ...] = (
    # attention heads of 64, layers of encoder and decoder, rows of the vocabulary
    _whisper("openai/whisper-tiny.en*", 6, 4, 4, 51864),
    _whisper("openai/whisper-base.en*", 8, 6, 6, 51864),
    _whisper("openai/whisper-small.en*", 12, 12, 12, 51864),
    _whisper("openai/whisper-medium.en*", 16, 24, 24, 51864),
    _whisper("openai/whisper-tiny*", 6, 4, 4),
    _whisper("openai/whisper-base*", 8, 6, 6),
    _whisper("openai/whisper-small*", 12, 12, 12),
    _whisper("openai/whisper-medium*", 16, 24, 24),
    _whisper("openai/whisper-large-v3-turbo*", 20, 32, 4, 51866, mels=128),
    _whisper("openai/whisper-large-v3*", 20, 32, 32, 51866, mels=128),
    _whisper("openai/whisper-large*", 20, 32, 32),
    _whisper("distil-whisper/distil-large-v3*", 20, 32, 2, 51866, mels=128),
    # heads of the language part, its hidden size and feed-forward size
    _qwen25_vl("Qwen/Qwen2.5-VL-3B*", (16, 2, 128), 2048, 11008, tied=True),
    _qwen25_vl("Qwen/Qwen2.5-VL-7B*", (28, 4, 128), 3584, 18944),
    _qwen25_vl("microsoft/Fara-7B*", (28, 4, 128), 3584, 18944),
    _qwen3_vl("Qwen/Qwen3-VL-2B*", (16, 8, 128), 2048, 6144, tied=True),
    _qwen3_vl("Qwen/Qwen3-VL-4B*", (32, 8, 128), 2560, 9728, tied=True),
    _qwen3_vl("Qwen/Qwen3-VL-8B*", (32, 8, 128), 4096, 12288),
    _qwen35("Qwen/Qwen3.5-0.8B*", (8, 2, 256), 1024, 3584, 16, tied=True),
    _qwen35("Qwen/Qwen3.5-2B*", (8, 2, 256), 2048, 6144, 16, tied=True),
    _qwen35("Qwen/Qwen3.5-4B*", (16, 4, 256), 2560, 9216, 32, tied=True),
    _qwen35("Qwen/Qwen3.5-9B*", (16, 4, 256), 4096, 12288, 32),
    _qwen35("Qwen/Qwen3.[56]-27B*", (24, 4, 256), 5120, 17408, 48),
    _gemma3("google/translategemma-4b*", (8, 4, 256), 2560, 10240),
    _gemma3("google/translategemma-12b*", (16, 8, 256), 3840, 15360),
    _gemma3("google/medgemma-4b*", (8, 4, 256), 2560, 10240),
    _ministral3("mistralai/Ministral-3-3B*", 3072, 9216, tied=True),
    _ministral3("mistralai/Ministral-3-8B*", 4096, 14336),
    _ministral3("mistralai/Ministral-3-14B*", 5120, 16384),
    _clip("openai/clip-vit-base-patch32", 32),
    _clip("openai/clip-vit-base-patch16", 16),
    _clip("openai/clip-vit-large-patch14*", 14, (12, 12, 768), (24, 16, 1024)),
    _clip("laion/CLIP-ViT-B-32-*", 32),
    _clip("laion/CLIP-ViT-B-16-*", 16),
    _resnet("microsoft/resnet-18*", "basic", 2, 2, 2, 2),
    _resnet("microsoft/resnet-34*", "basic", 3, 4, 6, 3),
    _resnet("microsoft/resnet-26*", "bottleneck", 2, 2, 2, 2),
    _resnet("microsoft/resnet-101*", "bottleneck", 3, 4, 23, 3),
    _resnet("microsoft/resnet-152*", "bottleneck", 3, 8, 36, 3),
    _resnet("microsoft/resnet-*", "bottleneck", 3, 4, 6, 3),
    _vit("google/vit-base-patch16-224-in21k", "image-feature-extraction", 12, 12, 768),
    _vit("google/vit-base-patch16-224*", "image-classification", 12, 12, 768, num_labels=1000),
    _deit("facebook/deit-tiny-patch16-224*", 3),
    _deit("facebook/deit-small-patch16-224*", 6),
    _deit("facebook/deit-base-patch16-224*", 12),
    _dinov2("facebook/dinov2-small*", 12, 6, 384),
    _dinov2("facebook/dinov2-base*", 12, 12, 768),
    _image_net("facebook/convnext-tiny-224*", "convnext", {"patch_size": 4}),
    _image_net("microsoft/swin-tiny-patch4-window7-224*", "swin", {"window_size": 7, "patch_size": 4, "image_size": 224}),
    _image_net("google/mobilenet_v2_1.0_224*", "mobilenet_v2", {"image_size": 224, "depth_multiplier": 1.0}),
    _sound("facebook/wav2vec2-base*", "wav2vec2", 12, 768),
    _sound("facebook/hubert-base*", "hubert", 12, 768),
)
