"""Adapters in peft's format: laid over a model, merged into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import torch

ADAPTER_FOLDER = "adapter"
ADAPTER_ATTRIBUTES = ("adapter_path", "adapter_type")  # of a handle whose adapter lies beside it
_SEPARATE = ("LORA", "LOHA")  # peft's types whose factors stay apart in an exported graph; DoRA is a LoRA


def import_peft() -> Any:
    """Returns the module peft.

    Raises:
        RunFailed: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise RunFailed("missing-package", "adapters need the package 'peft'", "pip install 'onnx-recipes[finetune]'") from None
    return peft


def adapter_folder(model: ModelHandle) -> Path | None:
    """Returns the folder of the adapter that belongs to an `hf` model; None where it has none.

    Raises:
        ModelUnavailable: the folder holds no adapter.
    """
    named = model.attributes.get("adapter_path")
    if not named or model.kind != "hf":
        return None
    folder = model.folder / str(named)
    if not (folder / "adapter_config.json").is_file():
        raise ModelUnavailable(
            "no-adapter", f"{folder} holds no adapter: adapter_config.json is missing", "check input_model.adapter_path"
        )
    return folder


def lay_over(module: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Returns the model with the adapter of a folder in its layers.

    The factors of LoRA, DoRA and LoHa stay apart, so that they can be exchanged later; other adapters are merged.

    Raises:
        ModelUnavailable: the adapter does not fit the model, or is damaged.
        RunFailed: peft is not installed.
    """
    import safetensors

    peft = import_peft()
    try:
        adapted = peft.PeftModel.from_pretrained(module, str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelUnavailable(
            "damaged-adapter", f"the adapter in {folder} cannot be laid over the model: {first}", "train it on this model"
        ) from error
    kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    whole: torch.nn.Module = adapted.get_base_model() if kind in _SEPARATE else adapted.merge_and_unload()
    return whole


def merged(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a model that `lay_over` gave with every adapter added to the weights below it.

    Raises:
        RunFailed: a weight with its adapter is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise RunFailed("adapter-not-finite", f"the adapter of {name} gives weights that are not finite") from error
            module.set_submodule(name, layer.get_base_layer())
        elif isinstance(layer, ModulesToSaveWrapper):
            module.set_submodule(name, layer.modules_to_save[layer.active_adapter])
    if hasattr(module, "_hf_peft_config_loaded"):
        module._hf_peft_config_loaded = False
    return module
