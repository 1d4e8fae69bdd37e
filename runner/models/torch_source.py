"""Loads a source model as a PyTorch module, in fp32 on the CPU, and its tokenizer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, ModelUnavailable, Problem, RunFailed, did_you_mean
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import quantization_of, read_checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
    "sentence-similarity": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "image-feature-extraction": "AutoModel",
}
_TASK_SUFFIXES = ("-with-past",)  # optimum's spelling of the same task


def auto_class(task: str) -> Any:
    """Returns transformers' auto class for a Hugging Face task.

    Raises:
        InvalidRecipe: the task is not among those served.
    """
    import transformers

    plain = task
    for suffix in _TASK_SUFFIXES:
        plain = plain.removesuffix(suffix)
    if plain not in AUTO_CLASSES:
        raise InvalidRecipe(
            Problem(
                "unknown-task", f"models for the task '{task}' are not loaded here", remedy=did_you_mean(task, AUTO_CLASSES)
            )
        )
    return getattr(transformers, AUTO_CLASSES[plain])


def load_torch(model: ModelHandle) -> torch.nn.Module:
    """Returns the module of an `hf` or `pytorch` handle: fp32, on the CPU, in evaluation mode.

    A `pytorch` handle's attributes name `model_script`, `model_loader` (its function from `model_path` to a module) and
    `script_dir` where the script imports from a folder of its own.

    Raises:
        ModelUnavailable: files are missing, truncated or do not fit the configuration.
        InvalidRecipe: the kind, task or loader does not exist.
        RunFailed: the recipe's own loader raised.
    """
    import torch

    if model.kind == "hf":
        module = _load_hf(model)
    elif model.kind == "pytorch":
        module = _load_by_script(model)
    else:
        raise InvalidRecipe(Problem("not-a-torch-model", f"a model of kind '{model.kind}' has no PyTorch form"))
    return module.to(device="cpu", dtype=torch.float32).eval()


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


def _load_hf(model: ModelHandle) -> torch.nn.Module:
    import safetensors
    import torch

    given = {
        key: value for key, value in model.attributes.get("load_kwargs", {}).items() if key not in ("torch_dtype", "dtype")
    }
    auto = auto_class(model.task or "feature-extraction")
    options = {**given, "dtype": torch.float32, "local_files_only": True, "trust_remote_code": _trusted(model)}
    try:
        if quantization_of(model.folder):
            return _load_dequantized(model, auto, options)
        module: torch.nn.Module = auto.from_pretrained(model.folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelUnavailable(
            "damaged-model",
            f"the weights in {model.folder} cannot be loaded: {_first_line(error)}",
            "remove the folder (or the model from the cache) and fetch it again",
        ) from error
    return module


def _load_dequantized(model: ModelHandle, auto: Any, options: dict[str, Any]) -> torch.nn.Module:
    """Returns the module with the values of its quantised weights, in a configuration that knows nothing of it."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=_trusted(model))
    del config.quantization_config
    state = read_checkpoint(model.folder).dequantized()
    with torch.device("meta"):
        architecture = type(auto.from_config(config, trust_remote_code=_trusted(model)))
    module: torch.nn.Module = architecture.from_pretrained(None, config=config, state_dict=state, **options)
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_by_script(model: ModelHandle) -> torch.nn.Module:
    script, loader = model.attributes.get("model_script"), model.attributes.get("model_loader")
    if not script or not loader:
        raise InvalidRecipe(
            Problem(
                "no-loader", "a PyTorchModel needs model_script and model_loader", remedy="name the function that returns it"
            )
        )
    load = script_function(Path(script), str(loader), model.attributes.get("script_dir"))
    try:
        module: torch.nn.Module = load(model.attributes.get("model_path"))
    except Exception as error:
        raise RunFailed("loader-failed", f"{script}: {loader}() raised {type(error).__name__}: {_first_line(error)}") from error
    return module


def script_function(script: Path, name: str, script_dir: str | None = None) -> Callable[..., Any]:
    """Returns the function `name` of a Python file, imported under a name of its own so that two scripts never mix.

    Raises:
        InvalidRecipe: the file or the function does not exist.
    """
    specification = importlib.util.spec_from_file_location(f"recipe_script_{abs(hash(script.resolve())):x}", script)
    if not script.is_file() or specification is None or specification.loader is None:
        raise InvalidRecipe(Problem("missing-script", f"there is no Python file {script}"))
    module = importlib.util.module_from_spec(specification)
    with _importable(Path(script_dir) if script_dir else script.resolve().parent):
        specification.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidRecipe(Problem("missing-function", f"{script} has no function '{name}'", remedy=did_you_mean(name, names)))
    return found  # type: ignore[no-any-return]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
