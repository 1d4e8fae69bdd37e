"""What a folder for onnxruntime-genai gets behind the builder: opset, tokenizer and settings that the runtimes take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BESIDE = ("special_tokens_map.json", "generation_config.json", "tokenizer.model")

# The name that transformers 5 writes for a tokenizer of no class of its own, and its older name.
_TOKENIZER_CLASS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def lower_opset(folder: Path) -> None:
    """Calls graphs of opset 22 graphs of 21: it only adds bf16 to what operators take, and DirectML lacks kernels of it."""
    import onnx

    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        versions = {one.domain: one for one in model.opset_import}
        if versions[""].version == 22:
            versions[""].version = 21
            onnx.save(model, path)


def copy_beside(source: Path, output: Path) -> None:
    """Copies files that programs expect next to the tokenizer and that the builder does not write."""
    for name in _BESIDE:
        if (source / name).is_file() and not (output / name).exists():
            shutil.copyfile(source / name, output / name)


def name_tokenizer(path: Path) -> None:
    """Calls the tokenizer by a name that older versions of the runtime take as well.

    The runtime chooses how to tokenize by the class's name. 0.13.1, which is pinned for DirectML, does not know
    TokenizersBackend; 0.18 gives the same tokens under both names, and so does transformers. LlamaTokenizer would be taken as
    well, but parts a digit from the space before it.
    """
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    written, known = _TOKENIZER_CLASS
    if config.get("tokenizer_class") == written:
        path.write_text(json.dumps({**config, "tokenizer_class": known}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finish_config(path: Path, search: Mapping[str, Any]) -> dict[str, Any]:
    """Lays the search settings over the builder's, and mends what it says of windows.

    To the runtime an empty list of window layers means every layer. The builder writes one for models whose window is as long
    as their context (Phi-3.5, Phi-4-mini), while all layers of its graph expect full caches.
    """
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    if decoder.get("sliding_window", {}).get("layers") == []:
        del decoder["sliding_window"]
    config["search"] = {**config["search"], **search}
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return config
