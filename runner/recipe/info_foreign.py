"""Reads the info.yml of a catalogue laid out as olive-recipes is: what it says, filled up from the configs beside it.

Such a file names recipes and little more: no facts of the model, often no name, and each list in several spellings. What
nobody says stays unknown (null, or an empty text); what is said wrongly is left to `recipe lint`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.errors import InvalidRecipe, Place, Problem
from runner.recipe.document import read_document
from runner.recipe.info import Info, ModelFacts, Variant

UNKNOWN = "unknown"
CONFIG_SUFFIXES = (".json", ".jsonc", ".yml", ".yaml")
PROVIDER_KEYS = ("ep", "eps")
DEVICE_KEYS = ("device", "devices")
DEVICES: tuple[Literal["cpu", "gpu", "npu"], ...] = ("cpu", "gpu", "npu")
_OURS = frozenset(Info.model_fields) - {"name", "arch", "keywords", "recipes"}
_PRECISIONS = re.compile(r"(?<![a-z0-9])(fp32|fp16|bf16|int8|int4|uint4)(?![a-z0-9])", re.IGNORECASE)
_LEVELS_OF_CONFIGS = ("*.json", "*/*.json")


def is_foreign(keys: Iterable[str]) -> bool:
    """Returns whether an info.yml with these top-level keys has none of those that only this catalogue knows."""
    return _OURS.isdisjoint(keys)


def foreign_info(file: Path, written: Mapping[str, Any], root: Path | None = None) -> Info:
    """Returns what a foreign info.yml says in this catalogue's words.

    The id is made of the folders between the catalogue's root and the recipe. Variants are the recipes that the file lists, or
    the configs that lie beside it where it lists none; their providers, and the model, come from the configs where the
    file does not tell them.

    Args:
        file: the info.yml.
        written: its content.
        root: the catalogue's root; None takes the last two folders for the id.

    Raises:
        InvalidRecipe: neither the file nor its folder names a config.
    """
    drafts = [*_listed(file.parent, written)] or [*_lying_beside(file.parent)]
    if not drafts:
        cause = "it lists no recipe, and no config lies beside it"
        raise InvalidRecipe(Problem("no-recipes", cause, Place(str(file)), "list the configs under 'recipes'"))
    keywords = texts(written.get("keywords"))
    return Info.model_construct(
        name="-".join(_way(file.parent, root)),
        arch=str(written.get("arch") or ""),
        keywords=keywords,
        model=_model(_way(file.parent, root)[0], written, [draft.config for draft in drafts]),
        recipes=[_variant(draft, written) for draft in _told_apart(drafts)],
    )


def texts(value: Any) -> list[str]:
    """Returns the words of a text, or the texts of a list: olive-recipes writes both for the same thing."""
    if isinstance(value, str):
        return value.split()
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def first_of(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Returns the value of the first of some keys that the mapping has; None where it has none."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


@dataclass(frozen=True)
class _Draft:
    """A recipe on its way to a variant: its name, its config file and its content, and what info.yml says of it."""

    name: str
    file: str
    config: Mapping[str, Any]
    entry: Mapping[str, Any]


def _way(folder: Path, root: Path | None) -> Sequence[str]:
    """The folders from the catalogue's root down to the recipe's, whose first is called after the model."""
    folder = folder.resolve()
    below = folder.relative_to(root.resolve()).parts if root and folder.is_relative_to(root.resolve()) else folder.parts[-2:]
    return [part for part in below if part != folder.anchor] or [folder.name]


def listed(written: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (number, entry) of what stands under `recipes` and names a config: the variants, in their order."""
    entries = written.get("recipes")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict) and isinstance(entry.get("file"), str) and entry["file"].endswith(CONFIG_SUFFIXES):
            yield number, entry


def _listed(folder: Path, written: Mapping[str, Any]) -> Iterator[_Draft]:
    for _, entry in listed(written):
        file, name = entry["file"], entry.get("name")
        yield _Draft(name if isinstance(name, str) else Path(file).stem, file, _config(folder / file), entry)


def _lying_beside(folder: Path) -> Iterator[_Draft]:
    for pattern in _LEVELS_OF_CONFIGS:
        for path in sorted(folder.glob(pattern)):
            config = _config(path)
            if isinstance(config.get("input_model"), dict):
                file = path.relative_to(folder).as_posix()
                yield _Draft(file.removesuffix(path.suffix).replace("/", "-"), file, config, {})


def _config(path: Path) -> Mapping[str, Any]:
    """A config's content; nothing where there is none, or none that can be read, which is the loader's to tell."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        return {}
    except ValueError:
        try:
            content = read_document(path).plain()
        except InvalidRecipe:
            return {}
    return content if isinstance(content, dict) else {}


def _told_apart(drafts: Sequence[_Draft]) -> Iterator[_Draft]:
    """Yields the drafts; a name that stands twice gives way to the file's, which says more."""
    names = [draft.name for draft in drafts]
    taken: set[str] = set()
    for draft in drafts:
        name = draft.name if names.count(draft.name) == 1 else Path(draft.file).stem
        while name in taken:
            name += "+"
        taken.add(name)
        yield _Draft(name, draft.file, draft.config, draft.entry)


def _variant(draft: _Draft, written: Mapping[str, Any]) -> Variant:
    accelerator = _accelerator(draft.config)
    devices = texts(first_of(draft.entry, DEVICE_KEYS) or accelerator.get("device") or first_of(written, DEVICE_KEYS))
    return Variant.model_construct(
        name=draft.name,
        file=draft.file,
        device=next((device for device in DEVICES if device in devices[:1]), "cpu"),
        ep=_provider(draft, accelerator, written),
        precision=_precision(draft),
    )


def _provider(draft: _Draft, accelerator: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """The one provider that the entry names; else the config's own; else the first that the file names for all its recipes."""
    named = texts(first_of(draft.entry, PROVIDER_KEYS))
    providers = accelerator.get("execution_providers")
    own = [one for one in providers if isinstance(one, str)] if isinstance(providers, list) else []
    candidates = named[:1] if len(named) == 1 else [*own, *named, *texts(first_of(written, PROVIDER_KEYS))]
    return candidates[0] if candidates else "CPUExecutionProvider"


def _accelerator(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first accelerator that the config names."""
    for system in _systems(config):
        accelerators = system.get("accelerators")
        if isinstance(accelerators, list) and accelerators and isinstance(accelerators[0], dict):
            return accelerators[0]
    return {}


def _systems(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the system that the config is for before its others; `engine` and `config` around them are older forms."""
    named = _mapping(config.get("systems"))
    asked = [holder.get(key) for holder in (config, _mapping(config.get("engine"))) for key in ("target", "host")]
    for system in (*(named.get(one) if isinstance(one, str) else one for one in asked), *named.values()):
        yield {**_mapping(system), **_mapping(_mapping(system).get("config"))}


def _precision(draft: _Draft) -> str | None:
    passes = draft.config.get("passes")
    for step in passes.values() if isinstance(passes, dict) else []:
        if isinstance(step, dict) and str(step.get("type")).lower() == "modelbuilder":
            told = step.get("precision") or _mapping(step.get("config")).get("precision")
            if isinstance(told, str):
                return told
    found = _PRECISIONS.search(draft.name) or _PRECISIONS.search(draft.file)
    return found[1].lower() if found else None


def _model(name: str, written: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> ModelFacts:
    inputs = [_mapping(config.get("input_model")) for config in configs]
    flat = [{**_mapping(one.get("hf_config")), **_mapping(one.get("config")), **one} for one in inputs]
    flat = [{**_mapping(one.get("hf_config")), **one} for one in flat]
    paths = [path for one in flat for path in (one.get("model_path"), one.get("model_name")) if isinstance(path, str)]
    card = _mapping(_mapping(written.get("aitk")).get("modelInfo")).get("id")
    told = [path for path in paths if "/" in path] + ([card.removeprefix("huggingface/")] if isinstance(card, str) else [])
    return ModelFacts.model_construct(
        id=next(iter((*told, *paths)), name),
        task=next((one["task"] for one in flat if isinstance(one.get("task"), str)), ""),
        parameters=None,
        licence=UNKNOWN,
        download_mb=None,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
