"""What a step's result depends on, and the sha256 over it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from runner.models.diffusion import component_files
from runner.models.digest import DigestMemo, files_below
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass
from runner.targets.target import TARGETS, Target, wheels_in_use


@cache
def version_of(package: str) -> str:
    """Returns the installed version of a distribution, or ``absent``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns name to installed version."""
    return {name: version_of(name) for name in sorted(packages)}


def packages_for(pass_: Pass, target: Target) -> tuple[str, ...]:
    """Returns the distributions whose versions a step depends on; the runtime's wheel is that of the target."""
    flavours = dict(zip(TARGETS["cpu"].wheels, wheels_in_use(target), strict=True))
    return tuple(flavours.get(name, name) for name in pass_.packages)


def step_ingredients(
    pass_: Pass,
    options: Mapping[str, Any],
    input_digest: str,
    target: Target,
    data: Mapping[str, str],
    components: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns everything that decides a step's result.

    Args:
        pass_: the declaration.
        options: resolved options, as JSON data.
        input_digest: fingerprint of the step before, or digest of the source.
        target: what the model is made for.
        data: digest of each data config or script that the options name (configuration, script's text, local files).
        components: what differs for single components of a pipeline, by name or pattern: `options` and `data`, or False.
    """
    differing = {"components": list(components.items())} if components else {}
    return {
        **differing,
        "pass": pass_.name,
        "pass_version": pass_.version,
        "options": dict(options),
        "input": input_digest,
        "target": target.name,
        "data": dict(data),
        "packages": versions(packages_for(pass_, target)),
    }


def component_digest(part: ModelHandle, memo: DigestMemo) -> str:
    """Returns the digest of a component of a pipeline, or of a source that becomes one: of its files and what is known of it.

    Raises:
        ModelUnavailable: the source lacks files of it.
    """
    files = component_files(part) if part.kind == "diffusers" else files_below(part.folder)
    known = {"file": part.file, "task": part.task, "attributes": part.attributes}
    return fingerprint({"files": memo.of_files(files), **known})


def fingerprint(ingredients: Mapping[str, Any]) -> str:
    """Returns the full hexadecimal sha256 of the ingredients' canonical JSON."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for each ingredient that differs, such as ``options.bits: 4 -> 8``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-6:]}"
