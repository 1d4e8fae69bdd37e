"""Counts the weights in a folder's safetensors files from their headers alone; reads no weight."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ModelUnavailable
from runner.models.checkpoint import read_json
from runner.models.weight_count import WeightCount

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "token_embedding.weight")
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
_WHOLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes, by the format
_HEADS = ("lm_head.weight", "proj_out.weight")


def count_files(folder: Path, files: Sequence[Path] | None = None) -> tuple[WeightCount, float]:
    """Returns the weights that a folder's safetensors files hold, and the bytes that one takes.

    Codes and scales of quantised weights are not counted.

    Args:
        folder: has the model's configuration.
        files: those that are read; the ones that transformers would load when None.

    Raises:
        ModelUnavailable: a file cannot be read.
    """
    kinds = {"embedding": 0, "head": 0, "linear": 0, "convolution": 0, "rest": 0}
    size = 0
    for name, dtype, shape in (tensor for path in files or _weight_files(folder) for tensor in _tensors(path)):
        if dtype not in _BYTES:
            continue
        count = math.prod(shape)
        kinds[_kind(name, shape)] += count
        size += count * _BYTES[dtype]
    total = sum(kinds.values())
    tied = kinds["embedding"] > 0 and _ties(folder, has_head=kinds["head"] > 0)
    if tied:
        kinds["head"] = 0  # some files hold a tied head again
    return WeightCount(**kinds, tied=tied), size / total if total else 0.0


def shapes_of(folder: Path) -> dict[str, Sequence[int]]:
    """Returns the shape of every tensor in the safetensors files that transformers would load from a folder, by name.

    Raises:
        ModelUnavailable: a file cannot be read.
    """
    return {name: shape for path in _weight_files(folder) for name, _, shape in _tensors(path)}


def _kind(name: str, shape: Sequence[int]) -> str:
    if name.endswith(_EMBEDDINGS):
        return "embedding"
    if name.endswith(_HEADS):
        return "head"
    if len(shape) == 2 and name.endswith("weight") and "position" not in name:
        return "linear"
    return "convolution" if len(shape) in (3, 4) and name.endswith("weight") else "rest"


def _ties(folder: Path, has_head: bool) -> bool:
    """Says whether a language model's head is its embedding."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = str((config.get("architectures") or [""])[0])
    return named.endswith(_WITH_HEAD) and (not has_head or bool(config.get("tie_word_embeddings")))


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, of a repository that may hold the same weights in other forms as well."""
    index = folder / f"{_WHOLE}.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    return [folder / _WHOLE] if (folder / _WHOLE).is_file() else sorted(folder.glob("*.safetensors"))


def _tensors(path: Path) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yields (name, type, shape) of every tensor: https://github.com/huggingface/safetensors#format."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(min(length, _LONGEST_HEADER)))
        for name, facts in header.items():
            if name != "__metadata__":
                yield name, facts["dtype"], facts["shape"]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise ModelUnavailable(
            "model-damaged", f"{path} has an unreadable safetensors header", "download the file again"
        ) from None
