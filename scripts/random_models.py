"""Random-weight models of real shapes, as Hugging Face and diffusers folders: good for time and memory, and for nothing else.

python scripts/random_models.py llama-3.2-1b-instruct FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.compose.contest import RANDOM_WEIGHTS
from runner.models.diffusion import Variant
from runner.models.diffusion_twin import PUBLISHED, shrink_pipeline
from runner.models.tasks import task_named
from runner.models.twin import architecture_of
from runner.models.twin_tokenizer import train_tokenizer
from runner.passes.export.tiny_pipeline import write_pipeline

SEED = 20
BIAS = 0.02  # deviation of the biases


@dataclass(frozen=True)
class Shape:
    """The shape of a published model.

    Attributes:
        id: the model on the hub, whose kind of tokenizer and image processor the folder gets.
        kind: transformers' model_type.
        task: Hugging Face task.
        facts: what its config.json says, where that is not the default of its kind.
        dtype: type of the weights.
    """

    id: str
    kind: str
    task: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


_LLAMA_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

# By the recipe that they stand in for.
SHAPES: Mapping[str, Shape] = {
    "llama-3.2-1b-instruct": Shape(
        "meta-llama/Llama-3.2-1B-Instruct", "llama", "text-generation",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
         "rope_parameters": _LLAMA_ROPE, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        "bfloat16",
    ),
    "mistral-7b-instruct-v0.3": Shape(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistral", "text-generation",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768, "max_position_embeddings": 32768,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "sliding_window": None,
         "tie_word_embeddings": False},
        "bfloat16",
    ),
    "bert-base-uncased": Shape("google-bert/bert-base-uncased", "bert", "fill-mask"),
    "vit-base-patch16-224": Shape(
        "google/vit-base-patch16-224", "vit", "image-classification", {"num_labels": 1000}
    ),
    "dinov2-small": Shape(
        "facebook/dinov2-small", "dinov2", "image-feature-extraction",
        {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14,
         "mlp_ratio": 4},
    ),
}  # fmt: skip

# Pipelines by their recipe: their kind, and the edge of the pictures that they draw.
PIPELINES: Mapping[str, tuple[Variant, int]] = {
    "stable-diffusion-v1-4": ("sd", 512),
    "stable-diffusion-xl-base-1.0": ("sdxl", 1024),
}


def write_random_model(shape: Shape, folder: Path, layers: int | None = None) -> None:
    """Writes config.json, weights, tokenizer or image processor.

    Args:
        shape: of which model.
        folder: is made.
        layers: build so many layers instead of the model's own number.
    """
    import torch
    import transformers

    facts = {**shape.facts, **({"num_hidden_layers": layers} if layers else {})}
    config = transformers.AutoConfig.for_model(shape.kind, **facts)
    auto = getattr(transformers, task_named(shape.task).auto_class or "AutoModel")
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        module = auto.from_config(config, dtype=getattr(torch, shape.dtype))
        for name, weight in module.named_parameters():
            if name.endswith("bias"):  # zeros, which exporters and fusions would leave out
                torch.nn.init.normal_(weight, std=BIAS)
    module.save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), RANDOM_WEIGHTS: True}, indent=2))
    twin = architecture_of(shape.id)
    if twin.vocabulary is not None:
        train_tokenizer(twin.vocabulary).save_pretrained(folder)
    if twin.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(twin.processor), indent=2), encoding="utf-8")


def write_random_pipeline(variant: Variant, edge: int, folder: Path, *, small: bool = False) -> None:
    """Writes a diffusers folder of a published pipeline's shape.

    Args:
        variant: its kind.
        edge: of the pictures that it draws, in pixels.
        folder: is made.
        small: few and narrow layers, to try what is measured with it.
    """
    configs = shrink_pipeline(PUBLISHED[variant]) if small else {**PUBLISHED[variant]}
    if not small:
        pixels = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        configs["unet"] = {**configs["unet"], "sample_size": edge // pixels}
        configs["vae"] = {**configs["vae"], "sample_size": edge}
    write_pipeline(variant, configs, folder)
    (folder / "config.json").write_text(json.dumps({RANDOM_WEIGHTS: True}), encoding="utf-8")


def main() -> None:
    """Writes one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=(*SHAPES, *PIPELINES), help="the recipe whose model it stands in for")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="so many layers instead of the model's own number; few ones of a pipeline")
    asked = parser.parse_args()
    if asked.recipe in PIPELINES:
        write_random_pipeline(*PIPELINES[asked.recipe], asked.folder, small=asked.layers is not None)
    else:
        write_random_model(SHAPES[asked.recipe], asked.folder, asked.layers)


if __name__ == "__main__":
    main()
