"""From an adapter in peft's format to the weights that a graph of onnxruntime-genai's builder takes as inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed, did_you_mean

if TYPE_CHECKING:
    import numpy as np

_PREFIX = "base_model.model."  # peft's, before every name
_FACTORS = (".lora_A.weight", ".lora_B.weight")
# The builder's names: of attention (also peft's self_attn), of feed-forward and of the head.
_KNOWN = re.compile(r"(?:model\.layers\.\d+\.(?:attn|mlp)\.\w+|lm_head)\.lora_[AB]\.weight")
_PACKED = ("qkv_proj", "query_key_value", "gate_up_proj", "dense_h_to_4h")  # which the builder takes apart


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
    scale = _scale(config, folder)
    made: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        path = _input_of(name)
        factor: np.ndarray = weight.astype(np.float32).T
        made[path] = np.ascontiguousarray((factor * scale if path.endswith(_FACTORS[1]) else factor).astype(dtype))
    return made


def adapter_inputs_of(folder: Path) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Returns type and shape, with None for what is free, of the inputs that the graph of a GenAI folder takes adapters by.

    Raises:
        ModelUnavailable: there is no such graph, or it takes no adapters.
    """
    import onnx

    from runner.models.files import graphs_of
    from runner.models.handle import ModelHandle

    try:
        file = graphs_of(ModelHandle("genai", folder, None, None))[0]
        graph = onnx.load(folder / file, load_external_data=False).graph
    except (OSError, ValueError, LookupError) as error:
        raise ModelUnavailable("no-model", f"{folder} holds no ONNX model: {error}", "name a folder of --multi_lora") from None
    found = {}
    for one in graph.input:
        if one.name.endswith(_FACTORS):
            tensor = one.type.tensor_type
            shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
            found[one.name] = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape
    if not found:
        raise ModelUnavailable(
            "no-adapter-inputs", f"the graph in {folder} takes no adapters", "make one with 'recipe finetune --multi_lora'"
        )
    return found


def check_fit(weights: dict[str, np.ndarray], taken: dict[str, tuple[str, tuple[int | None, ...]]], folder: Path) -> None:
    """Makes sure that a graph takes an adapter; layers that the adapter leaves out stay as they are.

    Args:
        weights: see `genai_adapter`.
        taken: see `adapter_inputs_of`.
        folder: the graph's.

    Raises:
        RunFailed: it has no such input, or one of another shape.
    """
    for name, one in weights.items():
        if name not in taken:
            raise RunFailed("adapter-unfit", f"the graph in {folder} has no input '{name}'", did_you_mean(name, taken))
        shape = taken[name][1]
        if any(size not in (None, found) for size, found in zip(shape, one.shape, strict=True)):
            told = [f"[{', '.join('r' if size is None else str(size) for size in sizes)}]" for sizes in (one.shape, shape)]
            cause = f"'{name}' is {told[0]} in the adapter and {told[1]} in the graph in {folder}"
            raise RunFailed("adapter-unfit", cause, "convert an adapter of the same base model")


def _input_of(name: str) -> str:
    """Returns what the builder calls a factor."""
    return name.removeprefix(_PREFIX).replace(".self_attn.", ".attn.").replace(".attn.dense.", ".attn.o_proj.")


def _scale(config: dict[str, Any], folder: Path) -> float:
    try:
        rank = int(config["r"])
        return float(config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        cause = f"adapter_config.json in {folder} says no r and lora_alpha: {error}"
        raise ModelUnavailable("damaged-adapter", cause, "make it again") from None


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    import safetensors
    from safetensors.torch import load_file

    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = "name the folder of adapter_config.json and adapter_model.safetensors"
        if (folder / "adapter_model.bin").is_file():
            remedy = "save it once more with save_pretrained of today's peft: adapter_model.bin is its old format"
        raise ModelUnavailable("no-adapter", f"{folder} holds no adapter in peft's format: {error}", remedy) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelUnavailable("damaged-adapter", f"the adapter in {folder} cannot be read: {error}", "make it again") from None
    if not isinstance(config, dict):
        raise ModelUnavailable("damaged-adapter", f"adapter_config.json in {folder} is no object", "make it again")
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
    packed = [name for name in weights if any(f".{one}." in name for one in _PACKED)]
    unknown = [name for name in weights if not _KNOWN.fullmatch(_input_of(name))]
    if packed or unknown:
        why = "the builder takes it apart" if packed else "no graph of the builder calls a layer so"
        raise RunFailed(
            "adapter-unsupported",
            f"{(packed or unknown)[0]}: {why}",
            "'recipe finetune --multi_lora' writes the file together with the graph",
        )
