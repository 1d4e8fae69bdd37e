"""Turns a .gguf file into a Hugging Face folder with fp32 weights, for every architecture that transformers can read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.errors import ModelUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAGIC = b"GGUF"
_OF_THE_FILE = (  # entries of the configuration that tell of the file and not of the model
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "quantization_config",
    "transformers_version",
)


class ImportGgufOptions(PassOptions):
    """Options of ImportGguf."""

    max_shard_size: str = Field("5GB", description="largest safetensors file; more weights are split")


def _apply(model: ModelHandle, options: ImportGgufOptions, context: PassContext) -> ModelHandle:
    path = _gguf_of(model)
    context.say(f"reading {path.name} and dequantising it to fp32")
    tokenizer, module = _load(path)
    module.save_pretrained(context.output, max_shard_size=options.max_shard_size)
    tokenizer.save_pretrained(context.output)
    facts = {"model_type": module.config.model_type, "architecture": type(module).__name__, "imported_from": path.name}
    return ModelHandle("hf", context.output, None, model.task or "text-generation", {**model.attributes, **facts})


def _gguf_of(model: ModelHandle) -> Path:
    """Returns the .gguf file of the handle after a look at its first bytes.

    Raises:
        ModelUnavailable: it is missing, empty or no GGUF file.
    """
    path = model.path
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise ModelUnavailable("model-not-found", f"{path} cannot be read: {error.strerror}", "fetch the model again") from None
    if len(head) < 8 or head[:4] != MAGIC:
        raise ModelUnavailable("model-damaged", f"{path} is no GGUF file", "fetch the model again")
    version = struct.unpack("<I", head[4:])[0]
    if version not in (2, 3):
        raise ModelUnavailable("model-damaged", f"{path} is of GGUF version {version}; 2 and 3 are read", "convert it anew")
    return path


def _load(path: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _read_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, NotImplementedError, struct.error) as error:
        if "not supported" in str(error):
            raise RunFailed("unsupported-architecture", f"transformers cannot read {path.name}: {error}") from error
        raise ModelUnavailable(
            "model-damaged", f"{path} cannot be read: {type(error).__name__}: {error}", "fetch the model again"
        ) from error
    return tokenizer, _plain(loaded)


@contextmanager
def _read_once() -> Iterator[None]:
    """Lets gguf's reader and its map of names, which transformers asks for again and again, be made once a file."""
    import gguf

    read, named = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = lru_cache(read), lru_cache(named)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = read, named


def _plain(loaded: Any) -> PreTrainedModel:
    """Returns the same weights in a module that knows nothing of having been quantised; good for saving only."""
    import torch

    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in _OF_THE_FILE}
    with torch.device("meta"):
        fresh: PreTrainedModel = type(loaded)(type(loaded.config)(**settings))
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    return fresh


PASS = Pass(
    name="ImportGguf",
    summary="Reads a .gguf file into a Hugging Face folder with fp32 weights, tokenizer and chat template.",
    options=ImportGgufOptions,
    apply=_apply,
    takes=("gguf",),
    gives="hf",
    packages=("transformers", "gguf", "torch", "tokenizers"),
)
