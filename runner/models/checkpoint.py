"""What a transformers folder consists of, and whether it is whole; looked at without any ML library."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

from runner.errors import ModelUnavailable

# What a transformers checkpoint consists of; other frameworks' copies of the weights stay where they are.
CHECKPOINT_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".py")
PICKLED_WEIGHTS = (".bin", ".pt", ".pth")
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "tekken.json",
)  # fmt: skip
# These read bytes or code points.
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def checkpoint_files(folder: Path) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files of a transformers folder that decide what the model is."""
    return [(path.name, path) for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(CHECKPOINT_FILES)]


def check_safetensors(path: Path) -> None:
    """Makes sure that a safetensors file is whole: its header is readable and its length is what the header says.

    The format: eight bytes little-endian length, that many bytes of JSON header, then the tensors
    (https://github.com/huggingface/safetensors#format).

    Raises:
        ModelUnavailable: the file is truncated or not safetensors at all.
    """
    size = path.stat().st_size
    remedy = "download the file again"
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ModelUnavailable("model-damaged", f"{path} is truncated or no safetensors file ({size} bytes)", remedy)
        try:
            tensors = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelUnavailable("model-damaged", f"{path} has an unreadable safetensors header", remedy) from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ModelUnavailable("model-damaged", f"{path} is truncated: {size} of {expected} bytes", remedy)


def check_shards(folder: Path, index: Path) -> None:
    """Makes sure that every file named by an index of shards is there.

    Raises:
        ModelUnavailable: some are not; names them.
    """
    shards = set(read_json(index).get("weight_map", {}).values())
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise ModelUnavailable("model-damaged", f"{folder} lacks {', '.join(missing)}", "download the model again")


def check_tokenizer(folder: Path) -> None:
    """Makes sure that a text model's folder has a vocabulary, unless its tokenizer needs none or brings its own code.

    Raises:
        ModelUnavailable: there is none; names the files that would be one.
    """
    if any(path.name in _VOCABULARIES or path.suffix == ".tiktoken" for path in folder.iterdir()):
        return
    config = folder / "tokenizer_config.json"
    told = read_json(config) if config.is_file() else {}
    if told.get("auto_map") or told.get("tokenizer_class") in _WITHOUT_VOCABULARY:
        return
    raise ModelUnavailable(
        "model-damaged",
        f"{folder} has no tokenizer: tokenizer.json is missing (or {', '.join(_VOCABULARIES[1:])})",
        "download the tokenizer files of the model as well",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the mapping of a checkpoint's JSON file.

    Raises:
        ModelUnavailable: it cannot be read, or is no mapping.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable("model-damaged", f"{path} cannot be read: {error}", "download the model again") from None
    if not isinstance(facts, dict):
        raise ModelUnavailable("model-damaged", f"{path} is not a mapping", "download the model again")
    return facts


def needs_remote_code(facts: dict[str, Any]) -> bool:
    """A checkpoint that brings its own classes for an architecture that the installed transformers does not implement."""
    return bool(facts.get("auto_map")) and not _in_transformers(str(facts.get("model_type", "")))


def _in_transformers(model_type: str) -> bool:
    """Looks for the architecture's folder inside transformers, without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations or not model_type.isidentifier():
        return False
    return (Path(spec.submodule_search_locations[0]) / "models" / model_type).is_dir()
