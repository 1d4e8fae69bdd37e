"""What a smoke run starts from: a tiny random-weight model in place of the one that is named, made without its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from runner.errors import ModelUnavailable
from runner.models.diffusion import TASK
from runner.models.diffusion_twin import configs_of
from runner.models.handle import ModelHandle
from runner.models.hub import cached_snapshot, download_config
from runner.models.source import Access, Source, local_path, looks_like_path, onnx_source
from runner.models.twin import architecture_called, architecture_of, is_known
from runner.recipe.config import InputModel
from runner.recipe.info import HubSource


def smoke_source(model: InputModel, folder: Path, access: Access, arch: str | None = None) -> Source:
    """Returns the source of a smoke run: a step that makes a tiny random-weight model in place of the one that is named.

    An ONNX file that lies here is taken as it is; one that another run has yet to make gets a small stand-in graph.

    Args:
        model: the configuration's input model.
        folder: folder of the configuration.
        access: what may be done.
        arch: transformers' model_type of an id of which nothing is known, as the recipe says it.

    Raises:
        InvalidRecipe: the architecture behind the id is not known.
    """
    named = model.model_path or ""
    local = local_path(named, folder) if named else None
    if model.type == "ONNXModel":
        if local is not None:
            return replace(
                onnx_source(model, local, access), notes=("--smoke: an ONNXModel has no tiny twin; the model itself is run",)
            )
        return _stand_in_graph(model)
    if model.type == "DiffusersModel":
        return _tiny_pipeline(model, named, local)
    return _tiny_twin(model, named, local, access, arch)


def _stand_in_graph(model: InputModel) -> Source:
    named = str(model.model_path)
    return Source(
        ModelHandle("onnx", Path(), task=model.task),
        hashlib.sha256(named.encode()).hexdigest(),
        f"a small random-weight graph in place of {named}",
        ("StandInGraph", {"name": named}),
        (f"--smoke: '{named}' is not here, so a small graph with random weights stands in for it",),
    )


def _tiny_twin(model: InputModel, named: str, local: Path | None, access: Access, arch: str | None) -> Source:
    notes: tuple[str, ...] = ()
    folder = local if local is not None and (local / "config.json").is_file() else None
    if folder is None and not is_known(named):
        folder = _published_config(named, access)
    like = architecture_called(arch) if folder is None and arch and not is_known(named) else None
    facts = like or architecture_of(str(folder) if folder else named)
    if facts.stands_in:
        notes = (f"--smoke: no facts are known of '{named}'; the architecture of {facts.pattern} stands in for it",)
    if model.adapter_path:
        notes += (f"--smoke: the adapter {model.adapter_path} does not fit a tiny model and is left out",)
    identity = (folder / "config.json").read_bytes() if folder else named.encode()
    options = {"model_id": str(folder) if folder else named, "task": model.task, **({"arch": like.pattern} if like else {})}
    return Source(
        ModelHandle("hf", folder or Path(), task=model.task),
        hashlib.sha256(identity).hexdigest(),
        f"tiny random-weight {facts.model_type} in place of {named}",
        ("TinyTwin", options),
        notes,
    )


def _tiny_pipeline(model: InputModel, named: str, local: Path | None) -> Source:
    """A step that makes a pipeline of few small layers; a local folder says what it looks like."""
    asked = None if model.model_variant == "auto" else model.model_variant
    variant, configs = configs_of(str(local or named), asked)
    identity = json.dumps([variant, configs], sort_keys=True)
    options = {"model_id": str(local or named), "model_variant": asked}
    return Source(
        ModelHandle("diffusers", local or Path(), task=TASK),
        hashlib.sha256(identity.encode()).hexdigest(),
        f"tiny random-weight {variant} pipeline in place of {named}",
        ("TinyPipeline", options),
    )


def _published_config(named: str, access: Access) -> Path | None:
    """Returns a folder with the configuration and tokenizer of an id, where the hub can be asked; None otherwise."""
    if looks_like_path(named):
        return None
    source = HubSource(hub=named)
    if (snapshot := cached_snapshot(source)) is not None:
        return snapshot
    if access.offline or not access.fetch:
        return None
    try:
        return download_config(source, access.say)
    except ModelUnavailable:
        return None  # the family stands in, with a note
