"""From an adapter in peft's format to the weights that a graph of onnxruntime-genai's builder takes as inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed

if TYPE_CHECKING:
    import numpy as np

_PREFIX = "base_model.model."  # peft's, before every name
_FACTORS = (".lora_A.weight", ".lora_B.weight")


def genai_adapter(folder: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Returns the factors of a LoRA adapter by the names of the graph's inputs.

    A factor A is [in, r] and B is [r, out], as a MatMul reads them; B is scaled by alpha / r, as the builder scales it.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        dtype: ``float32`` or ``float16``, that of the graph's inputs.

    Raises:
        ModelUnavailable: the folder holds no adapter, or a damaged one.
        RunFailed: the adapter is of a kind that such graphs do not take.
    """
    import numpy as np

    config, weights = _read(folder)
    _check(config, weights)
    made: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        path = name.removeprefix(_PREFIX)
        scaled: np.ndarray = weight.astype(np.float32).T
        if path.endswith(_FACTORS[1]):
            rank = int(config["r"])
            scaled = scaled * np.float32(config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank))
        made[path.replace(".self_attn.", ".attn.")] = np.ascontiguousarray(scaled.astype(dtype))
    return made


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    import safetensors
    from safetensors.torch import load_file

    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ModelUnavailable(
            "no-adapter", f"{folder} holds no adapter in peft's format: {error}", "name the folder of adapter_config.json"
        ) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelUnavailable("damaged-adapter", f"the adapter in {folder} cannot be read: {error}", "make it again") from None
    return config, {name: one.float().numpy() for name, one in weights.items()}


def _check(config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    kind = "DORA" if config.get("use_dora") else str(config.get("peft_type"))
    if kind != "LORA":
        raise RunFailed(
            "adapter-unsupported", f"graphs take LoRA factors, and this is {kind}", "merge it into the model instead"
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise RunFailed("adapter-unsupported", "layers with ranks of their own are not converted", "merge it into the model")
    strange = [name for name in weights if not name.endswith(_FACTORS)]
    if strange or not weights:
        raise RunFailed(
            "adapter-unsupported",
            f"the adapter has weights that are no LoRA factors: {', '.join(strange[:3]) or 'none at all'}",
            "train without modules_to_save and biases, or merge it into the model",
        )
