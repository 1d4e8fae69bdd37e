"""Tiny twins of pipelines that draw: the configuration of every component at toy size. Imports no ML library.

What decides the shape of the graphs stays: one block of each kind, heads, how text and sizes enter, activations, scaling of
latents. Widths and numbers of layers shrink.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.models.checkpoint import read_json
from runner.models.diffusion import COMPONENTS, TOKENS, VARIANTS, Variant
from runner.models.hub import INDEX
from runner.models.twin_shrink import shrink

LATENTS = 16  # edge of the square of latents that a twin draws by default
_HEAD = 8
_WIDTH = 32
_GROUPS = 32

Configs = dict[str, dict[str, Any]]

_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    "max_position_embeddings": TOKENS, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_BIG_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "max_position_embeddings": TOKENS, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_CROSS_DOWN, _DOWN, _CROSS_UP, _UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
_AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}

# The facts of the published configurations that shape the graphs.
PUBLISHED: Mapping[Variant, Configs] = {
    "sd": {
        "text_encoder": _CLIP_L,
        "unet": {
            **_UNET,
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": [_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN],
            "up_block_types": [_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP],
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "vae": {**_AUTOENCODER, "scaling_factor": 0.18215, "force_upcast": False},
        "scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, **_BETAS},
    },
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _BIG_G,
        "unet": {
            **_UNET,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": [_DOWN, _CROSS_DOWN, _CROSS_DOWN],
            "up_block_types": [_CROSS_UP, _CROSS_UP, _UP],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_AUTOENCODER, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **_BETAS},
    },
}  # fmt: skip


def configs_of(model: str, asked: Variant | None = None) -> tuple[Variant, Configs]:
    """Returns (kind, configurations by folder) of a pipeline: of a local folder, or of a published model whose name is known.

    Raises:
        InvalidRecipe: neither the id nor the folder says what kind of pipeline it is.
    """
    folder = Path(model)
    if (folder / INDEX).is_file():
        variant = asked or VARIANTS.get(str(read_json(folder / INDEX).get("_class_name")))
        if variant is not None:
            return variant, _read(folder, variant)
    name = model.lower()
    variant = asked or ("sdxl" if "xl" in name else "sd" if "diffusion" in name or "sd" in name else None)
    if variant is None:
        raise InvalidRecipe(
            Problem(
                "no-tiny-twin",
                f"nothing is known of the pipeline '{model}'",
                remedy=f"set input_model.model_variant ({' or '.join(COMPONENTS)}), or name a local folder with a {INDEX}",
            )
        )
    return variant, PUBLISHED[variant]


def _read(folder: Path, variant: Variant) -> Configs:
    names = [name for name in (*COMPONENTS[variant], "vae") if not name.startswith("vae_")]
    read = {name: read_json(folder / name / "config.json") for name in names}
    return {**read, "scheduler": read_json(folder / "scheduler" / "scheduler_config.json")}


def shrink_pipeline(configs: Mapping[str, Mapping[str, Any]]) -> Configs:
    """Returns the configurations of a pipeline at toy size, which fit together as the large ones do."""
    encoders = {name: _shrink_encoder(facts) for name, facts in configs.items() if name.startswith("text_encoder")}
    unet = _shrink_unet(configs["unet"])
    unet["cross_attention_dim"] = sum(facts["hidden_size"] for facts in encoders.values())
    if unet.get("addition_embed_type") == "text_time":
        unet["addition_time_embed_dim"] = _WIDTH
        unet["projection_class_embeddings_input_dim"] = encoders["text_encoder_2"]["projection_dim"] + 6 * _WIDTH
    return {**encoders, "unet": unet, "vae": _shrink_autoencoder(configs["vae"]), "scheduler": dict(configs["scheduler"])}


_OF_A_TOKENIZER = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "model_type",
    "architectures",
    "torch_dtype",
    "dtype",
)


def _shrink_encoder(facts: Mapping[str, Any]) -> dict[str, Any]:
    tiny = shrink("clip_text_model", {key: value for key, value in facts.items() if key not in _OF_A_TOKENIZER})
    return {**tiny, "projection_dim": tiny["hidden_size"]}


def _shrink_unet(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the first level of each kind; a level with attention is as wide as its heads need."""
    kinds = list(facts["down_block_types"])
    levels = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    heads = _each(facts.get("num_attention_heads") or facts["attention_head_dim"], len(kinds))
    widths = [_HEAD * heads[level] if "CrossAttn" in kinds[level] else _WIDTH for level in levels]
    up = list(reversed(facts["up_block_types"]))
    tiny = {key: value for key, value in facts.items() if not key.startswith("_")}
    tiny |= {
        "sample_size": LATENTS,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": [kinds[level] for level in levels],
        "up_block_types": [up[level] for level in reversed(levels)],
        "norm_num_groups": math.gcd(_GROUPS, *widths),
        "attention_head_dim": [heads[level] for level in levels],
    }
    if isinstance(layers := facts.get("transformer_layers_per_block"), (list, tuple)):
        tiny["transformer_layers_per_block"] = [min(layers[level], 2) for level in levels]
    return tiny


def _each(value: int | list[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _shrink_autoencoder(facts: Mapping[str, Any]) -> dict[str, Any]:
    count = len(facts["block_out_channels"])
    tiny = {key: value for key, value in facts.items() if not key.startswith("_")}
    widths = [_WIDTH] * (count - 1) + [2 * _WIDTH]
    return {
        **tiny,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "sample_size": 2 ** (count - 1) * LATENTS,
    }
