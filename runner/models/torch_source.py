"""Loads a source model as a PyTorch module, in fp32 on the CPU, and its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem
from runner.models.adapter import adapter_folder, lay_over
from runner.models.checkpoint import read_json
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import LARGE, compute_from_codes, computes_in_fp32, widen
from runner.models.quantized_checkpoint import quantization_of, read_checkpoint
from runner.models.tasks import task_named, task_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def auto_class(task: str) -> Any:
    """Returns transformers' auto class for a Hugging Face task.

    Raises:
        InvalidRecipe: the task is not among those served.
    """
    import transformers

    named = task_named(task).auto_class
    if named is None:
        raise InvalidRecipe(
            Problem("unknown-task", f"no one model of transformers serves '{task}'", remedy="use a DiffusersModel")
        )
    return getattr(transformers, named)


def load_torch(model: ModelHandle, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Returns the module of an `hf` handle: on the CPU, in evaluation mode; its adapter lies over it, its factors apart.

    Args:
        model: the handle.
        dtype: of its weights; fp32 when None.

    Raises:
        ModelUnavailable: files are missing, truncated or do not fit the configuration.
        InvalidRecipe: it is of another kind, or its task does not exist.
    """
    import torch

    if model.kind != "hf":
        raise InvalidRecipe(Problem("not-a-torch-model", f"a model of kind '{model.kind}' is no transformers model"))
    module = _load_hf(model, dtype)
    adapter = adapter_folder(model)
    module = lay_over(module, adapter) if adapter else module
    return module.to(device="cpu", dtype=dtype or torch.float32).eval()


def load_mapped(model: ModelHandle) -> torch.nn.Module | None:
    """Returns the module of a large `hf` handle that computes what `load_torch`'s does, without a copy of its weights.

    Of a quantised model the products and lookups read the codes.

    Returns None for what is small, under an adapter, or would compute otherwise.

    Raises:
        ModelUnavailable, InvalidRecipe: as `load_torch`.
    """
    if model.kind != "hf" or adapter_folder(model):
        return None
    if quantization_of(model.folder):
        return _load_codes(model)
    from runner.models.stored_weights import (
        count_files,  # brings the tables of architectures, which declaring a pass does without
    )

    weights, _ = count_files(model.folder)
    if weights.total < LARGE:
        return None
    module = _load_hf(model, dtype="auto")
    if not _exact_buffers(module):
        return None
    widen(module)
    return module.eval()


def load_to_run(model: ModelHandle) -> torch.nn.Module:
    """Returns the module that computes in fp32 with floating-point weights: `load_mapped`'s where it can, or `load_torch`'s."""
    return (None if quantization_of(model.folder) else load_mapped(model)) or load_torch(model)


def load_in_place(model: ModelHandle) -> torch.nn.Module:
    """Returns the module of an `hf` handle with its weights as they lie in the files, mapped into memory; it is not to be run.

    What is quantised has no values.

    Raises:
        ModelUnavailable, InvalidRecipe: as `load_torch`.
    """
    if not quantization_of(model.folder):
        return _load_hf(model, dtype="auto")
    module: Any = _without_values(model, _auto_class_of(model))
    module.load_state_dict(dict(read_checkpoint(model.folder).floats), strict=False, assign=True)
    module.tie_weights()
    whole: torch.nn.Module = module
    return whole


def load_tokenizer(model: ModelHandle) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that lies in the handle's folder.

    Raises:
        ModelUnavailable: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=_trusted(model)
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(
            "no-tokenizer", f"no tokenizer can be loaded from {model.folder}: {_first_line(error)}", "fetch the model again"
        ) from error
    return tokenizer


def _trusted(model: ModelHandle) -> bool:
    return bool(model.attributes.get("trust_remote_code", False))


def _load_hf(model: ModelHandle, dtype: Any = None) -> torch.nn.Module:
    import safetensors
    import torch

    given = {
        key: value for key, value in model.attributes.get("load_kwargs", {}).items() if key not in ("torch_dtype", "dtype")
    }
    auto = _auto_class_of(model)
    options = {**given, "dtype": dtype or torch.float32, "local_files_only": True, "trust_remote_code": _trusted(model)}
    try:
        if quantization_of(model.folder):
            return _load_dequantized(model, auto, options)
        module: torch.nn.Module = auto.from_pretrained(model.folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        if "Unrecognized configuration class" in str(error):
            kind = read_json(model.folder / "config.json").get("model_type", "model")
            cause = f"a {kind} is no model for '{task_of(model)}': transformers has no {auto.__name__} of it"
            raise InvalidRecipe(Problem("wrong-task", cause, remedy="name the task that it was made for, or none")) from None
        raise ModelUnavailable(
            "damaged-model",
            f"the weights in {model.folder} cannot be loaded: {_first_line(error)}",
            "remove the folder (or the model from the cache) and fetch it again",
        ) from error
    return module


def _auto_class_of(model: ModelHandle) -> Any:
    """Returns the auto class of the model's task; speech recognisers without a decoder have one of their own."""
    import transformers

    if str(model.attributes.get("architecture") or "").endswith("ForCTC"):
        return transformers.AutoModelForCTC
    return auto_class(task_of(model))


def _load_dequantized(model: ModelHandle, auto: Any, options: dict[str, Any]) -> torch.nn.Module:
    """Returns the module with the values of its quantised weights."""
    return _with_values(model, auto, read_checkpoint(model.folder).dequantized(), options)


def _load_codes(model: ModelHandle) -> torch.nn.Module | None:
    """Returns the module whose products and lookups read the codes of a large model; None where that cannot be done."""
    checkpoint = read_checkpoint(model.folder)
    if checkpoint.count < LARGE:
        return None
    floats = {name: one for name, one in checkpoint.floats.items() if one.is_floating_point()}
    dtype = min((one.dtype for one in floats.values()), key=lambda kind: kind.itemsize)
    others = {name: one for name, one in floats.items() if one.dtype != dtype}
    options = {"dtype": dtype, "local_files_only": True}
    try:
        module = _with_values(model, _auto_class_of(model), checkpoint.outlined(dtype), options)
        module.load_state_dict(others, strict=False, assign=True)  # transformers has rounded them
    except (OSError, ValueError, KeyError, RuntimeError):  # told by whoever loads its values
        return None
    if not _exact_buffers(module):
        return None
    widen(module)
    return module.eval() if compute_from_codes(module, checkpoint.codes) else None


def _exact_buffers(module: Any) -> bool:
    """Gives a module in half precision the buffers that one in fp32 computes itself; returns whether all are in fp32 then."""
    import torch

    if computes_in_fp32(module):
        return True
    outline = {name: torch.zeros(()).expand(one.shape) for name, one in module.state_dict().items()}  # takes no memory
    exact = type(module).from_pretrained(None, config=module.config, state_dict=outline, dtype=torch.float32)
    for name, buffer in exact.named_non_persistent_buffers():
        above, _, last = name.rpartition(".")
        module.get_submodule(above)._buffers[last] = buffer
    return computes_in_fp32(module)


def _with_values(model: ModelHandle, auto: Any, state: dict[str, Any], options: dict[str, Any]) -> torch.nn.Module:
    empty: Any = _without_values(model, auto)
    module: torch.nn.Module = type(empty).from_pretrained(None, config=empty.config, state_dict=state, **options)
    return module


def _without_values(model: ModelHandle, auto: Any) -> torch.nn.Module:
    """Returns the module of a quantised checkpoint on the meta device, in a configuration that knows nothing of it."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=_trusted(model))
    del config.quantization_config
    with torch.device("meta"):
        module: torch.nn.Module = auto.from_config(config, trust_remote_code=_trusted(model))
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
