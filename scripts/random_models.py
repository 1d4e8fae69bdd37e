"""Random-weight models of real shapes, as Hugging Face and diffusers folders: good for time and memory, and for nothing else.

python scripts/random_models.py llama-3.2-1b-instruct FOLDER
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.compose.contest import RANDOM_WEIGHTS
from runner.models.diffusion import Variant
from runner.models.diffusion_twin import PUBLISHED, shrink_pipeline
from runner.models.torch_source import auto_class
from runner.models.twin import architecture_of
from runner.models.twin_tokenizer import train_tokenizer
from runner.passes.export.tiny_pipeline import write_pipeline

CATALOG = Path(__file__).resolve().parents[1] / "recipes"
SEED = 20
BIAS = 0.02  # deviation of the biases


# Pipelines by their recipe: their kind, and the edge of the pictures that they draw.
PIPELINES: Mapping[str, tuple[Variant, int]] = {
    "stable-diffusion-v1-4": ("sd", 512),
    "stable-diffusion-xl-base-1.0": ("sdxl", 1024),
}


def model_of(recipe: str) -> tuple[str, str]:
    """Returns the Hugging Face id and the task of the model of a recipe of the catalogue.

    Raises:
        SystemExit: there is no such recipe.
    """
    found = [path for path in CATALOG.glob(f"**/{recipe}/olive_config.json") if (path.parent / "info.yml").is_file()]
    if not found:
        known = sorted(path.parent.name for path in CATALOG.glob("**/info.yml"))
        near = difflib.get_close_matches(recipe, known, 1)
        sys.exit(f"there is no recipe '{recipe}'{f'; did you mean {near[0]}?' if near else ''}; `recipe ls` lists them")
    model = json.loads(found[0].read_text(encoding="utf-8"))["input_model"]
    return model["model_path"], model["task"]


def write_random_model(model_id: str, task: str, folder: Path, layers: int | None = None) -> None:
    """Writes config.json, weights, tokenizer or image processor.

    Args:
        model_id: the published model. Weights of a language model are bf16, others fp32.
        task: Hugging Face task.
        folder: is made.
        layers: build so many layers instead of the model's own number.
    """
    import torch
    import transformers

    twin = architecture_of(model_id)
    if twin.stands_in:
        sys.exit(f"the shape of {model_id} is not known here (runner/models/twin_table.py)")
    tokenizer = train_tokenizer(twin.vocabulary) if twin.vocabulary is not None else None
    ids = {}
    if tokenizer is not None:
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
        if twin.model_type == "whisper":  # whose batches of answers are padded
            ids["pad_token_id"] = tokenizer.eos_token_id
    config = transformers.AutoConfig.for_model(twin.model_type, **_facts(twin.facts, ids, layers))
    generates = task.startswith("text-generation")
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        module = auto_class(task).from_config(config, dtype=torch.bfloat16 if generates else torch.float32)
        for name, weight in module.named_parameters():
            if name.endswith("bias"):  # zeros, which exporters and fusions would leave out
                torch.nn.init.normal_(weight, std=BIAS)
    module.save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), RANDOM_WEIGHTS: True}, indent=2))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if twin.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(twin.processor), indent=2), encoding="utf-8")


def _facts(facts: Mapping[str, Any], ids: Mapping[str, int | None], layers: int | None) -> dict[str, Any]:
    """Returns the entries of config.json that make a shape, with the ids of the tokenizer that is written beside it."""
    told = {name: value for name, value in facts.items() if not name.endswith(("_token_id", "_token_index"))}
    told |= {name: _facts(value, ids, layers) for name, value in told.items() if name in ("text_config", "vision_config")}
    if layers and "num_hidden_layers" in told:
        told["num_hidden_layers"] = layers
    if "vocab_size" in told:
        told |= ids
    if "layer_types" in told:
        kinds = told["layer_types"]
        told["layer_types"] = [kinds[at % len(kinds)] for at in range(told["num_hidden_layers"])]
    return told


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


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 on")
    return int(text)


def main() -> None:
    """Writes one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="the recipe whose model it stands in for, as `recipe ls` lists it")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--layers",
        type=_count,
        help="so many layers instead of the model's own number, where it has one; few ones of a pipeline",
    )
    asked = parser.parse_args()
    if asked.folder.is_dir() and any(asked.folder.iterdir()):
        sys.exit(f"{asked.folder} is not empty; name another folder, or delete this one")
    if asked.recipe in PIPELINES:
        write_random_pipeline(*PIPELINES[asked.recipe], asked.folder, small=asked.layers is not None)
    else:
        write_random_model(*model_of(asked.recipe), asked.folder, asked.layers)


if __name__ == "__main__":
    main()
