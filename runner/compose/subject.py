"""What the word for a model names: a Hugging Face id, a model folder, an ONNX file, or a PyTorch model with its script."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.catalog.find import is_there
from runner.catalog.scaffold import MODEL_ID
from runner.errors import UsageError, did_you_mean
from runner.models.checkpoint import read_json
from runner.models.hub import INDEX as PIPELINE_INDEX
from runner.models.tasks import TASKS, WITH_PAST
from runner.models.twin import task_of

_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)")
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# Key of `input_model` -> the functions of a script that serve it, as Olive's guides and as other people call them.
_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "model_loader": ("_model_loader", "model_loader", "load_model", "get_model"),
    "io_config": ("_io_config", "io_config", "get_io_config"),
    "dummy_inputs_func": ("_dummy_inputs", "dummy_inputs", "dummy_inputs_func", "get_dummy_inputs"),
}

SubjectKind = Literal["hf", "diffusers", "onnx", "pytorch"]
_TYPES: Mapping[SubjectKind, str] = {
    "hf": "HfModel",
    "diffusers": "DiffusersModel",
    "onnx": "ONNXModel",
    "pytorch": "PyTorchModel",
}


@dataclass(frozen=True)
class Subject:
    """The model that a command was given.

    Attributes:
        kind: what it is.
        word: the id, or the absolute path of a folder or file; empty for a script that needs no weights.
        task: Hugging Face task, where somebody or the model's own config.json says it.
        details: further keys of the configuration's `input_model`.
    """

    kind: SubjectKind
    word: str
    task: str | None
    details: Mapping[str, Any]

    @property
    def folder(self) -> Path | None:
        """Returns the model's folder, or the one that its file lies in; None for an id."""
        path = Path(self.word)
        if self.kind == "pytorch" and not self.word:
            return Path(str(self.details["model_script"])).parent
        return None if not path.is_absolute() else path if path.is_dir() else path.parent

    @property
    def name(self) -> str:
        """Returns a short name in small letters: that of the id, folder or file."""
        plain = Path(self.word or str(self.details.get("model_script", "model")))
        last = plain.stem if plain.suffix in (*_WEIGHTS, ".onnx", ".py", ".gguf") else plain.name
        if last in ("model", "pytorch_model") and plain.is_absolute():
            last = plain.parent.name
        return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._") or "model"

    def input_model(self) -> dict[str, Any]:
        """Returns the section `input_model` of a configuration, as JSON data."""
        told: dict[str, Any] = {"type": _TYPES[self.kind]}
        if self.word:
            told["model_path"] = self.word
        if self.task and self.kind != "diffusers":
            told["task"] = self.task
        return {**told, **self.details}


def subject_of(
    word: str | None,
    *,
    task: str | None = None,
    model_script: Path | None = None,
    script_dir: Path | None = None,
    adapter: str | None = None,
) -> Subject:
    """Returns what a word names.

    Args:
        word: a Hugging Face id or the address of its page, a folder, or a file; None for a script that loads all by itself.
        task: Hugging Face task that was asked for.
        model_script: Python file with the functions of a PyTorch model.
        script_dir: folder of modules that it imports.
        adapter: folder of an adapter in peft's format.

    Raises:
        UsageError: nothing of that name is there, or what is there is no model.
    """
    if task is not None and task.removesuffix(WITH_PAST) not in TASKS:
        raise UsageError("unknown-task", f"there is no task '{task}'", did_you_mean(task, TASKS))
    if model_script is not None:
        return _scripted(word, task, model_script, script_dir)
    if not word:
        raise UsageError("no-model", "no model was named", "give --model_name_or_path, or --model_script for a PyTorch model")
    page = _HUB_PAGE.match(word)
    word = page[1] if page else word
    details: dict[str, Any] = {"adapter_path": str(Path(adapter).resolve())} if adapter else {}
    path = Path(word).expanduser()
    found = _on_disk(path.resolve(), task, details) if is_there(path) else _on_hub(word, task, details)
    if adapter and found.kind != "hf":
        raise UsageError("bad-usage", "--adapter_path belongs to a Hugging Face model", "name the model that it was trained on")
    return found


def _on_hub(word: str, task: str | None, details: Mapping[str, Any]) -> Subject:
    if not MODEL_ID.fullmatch(word) or word.endswith((*_WEIGHTS, ".onnx", ".gguf", ".py")):
        raise UsageError(
            "model-not-found",
            f"'{word}' is neither a folder or file that is there, nor a Hugging Face id",
            "check the path, or write the id as Org/Name",
        )
    return Subject("hf", word, task, details)


def _on_disk(path: Path, task: str | None, details: Mapping[str, Any]) -> Subject:
    if path.is_file():
        return _of_file(path, task, details)
    if (path / PIPELINE_INDEX).is_file():
        return Subject("diffusers", str(path), "text-to-image", details)
    if (path / "config.json").is_file():
        if not _has_only_graphs(path):
            return Subject("hf", str(path), task or task_of(read_json(path / "config.json")), details)
    elif (path / "adapter_config.json").is_file():
        told = read_json(path / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise UsageError(
            "adapter-alone", f"{path} is an adapter, not a model", f"name {told} as the model, and --adapter_path {path}"
        )
    elif list(path.glob("*.gguf")):
        return Subject("hf", str(path), task or "text-generation", details)
    graphs = sorted(path.glob("*.onnx"))
    if not graphs:
        raise UsageError(
            "not-a-model",
            f"{path} holds no model: neither config.json, {PIPELINE_INDEX} nor an ONNX file",
            "name the folder that holds one of them",
        )
    if len(graphs) > 1:
        names = ", ".join(graph.name for graph in graphs)
        raise UsageError("several-graphs", f"{path} holds several ONNX files: {names}", "name the one that is meant")
    return Subject("onnx", str(path), task, details)


def _has_only_graphs(path: Path) -> bool:
    weights = (*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.gguf"))
    return not weights and any(path.glob("*.onnx"))


def _of_file(path: Path, task: str | None, details: Mapping[str, Any]) -> Subject:
    if path.suffix == ".onnx":
        return Subject("onnx", str(path), task, details)
    if path.suffix == ".gguf" and len(list(path.parent.glob("*.gguf"))) == 1:
        return Subject("hf", str(path.parent), task or "text-generation", details)
    if path.suffix in _WEIGHTS:
        raise UsageError(
            "needs-script",
            f"{path.name} holds weights, and nothing says which module they belong to",
            "add --model_script FILE with a function _model_loader(model_path), or name the folder that has the config.json",
        )
    raise UsageError("not-a-model", f"{path} is no model", "an ONNX file, a model folder, or weights with --model_script")


def _scripted(word: str | None, task: str | None, script: Path, script_dir: Path | None) -> Subject:
    if not script.is_file():
        raise UsageError("no-script", f"there is no script '{script}'", "check --model_script")
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"), str(script))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError("bad-script", f"{script} is no Python that can be read: {error}") from None
    named = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    found = {key: next((one for one in names if one in named), None) for key, names in _FUNCTIONS.items()}
    if found["model_loader"] is None:
        raise UsageError(
            "no-loader",
            f"{script} defines none of {', '.join(_FUNCTIONS['model_loader'])}",
            "define _model_loader(model_path), which returns the torch.nn.Module",
        )
    if found["io_config"] is None and found["dummy_inputs_func"] is None:
        raise UsageError(
            "no-inputs",
            f"{script} does not say what the model takes: neither _io_config nor _dummy_inputs is defined",
            "define _io_config(model) with input_names, input_shapes and output_names, or _dummy_inputs(model)",
        )
    path = ""
    if word:
        local = Path(word).expanduser()
        path = str(local.resolve()) if is_there(local) else word
    details = {"model_script": str(script.resolve()), **{key: value for key, value in found.items() if value}}
    if script_dir is not None:
        details["script_dir"] = str(script_dir.resolve())
    return Subject("pytorch", path, task, details)
