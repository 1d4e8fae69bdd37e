"""With which passes a model was made: what results write down, and what has changed since they did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import InvalidRecipe
from runner.passes import table

CURRENT, UNKNOWN = "today's passes", "unknown passes"


def settings_digest(config: Mapping[str, Any]) -> str:
    """Returns the sha256 of a configuration's passes, their options and the data configs that these name.

    Args:
        config: the document as plain data, such as an olive_config.json; other spellings of the same options give another.
    """
    passes = config.get("passes") or {}
    named = set(_texts(passes))
    data = [one for one in config.get("data_configs") or () if one["name"] in named]
    text = json.dumps([list(passes.items()), data], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def changes_since(passes: Mapping[str, int], settings: str | None, config: Mapping[str, Any]) -> list[str]:
    """Returns how a variant's passes differ from those of a record, such as ``ModelBuilder 4 (now 5)``; nothing is run.

    Args:
        passes: version by name of the passes that made the model.
        settings: what `settings_digest` said of them; None where nobody wrote it down.
        config: the variant's configuration of today, as plain data.
    """
    changed = []
    for name, version in passes.items():
        try:
            now = table.get(name).version
        except InvalidRecipe:
            changed.append(f"{name} {version} (gone)")
            continue
        if now != version:
            changed.append(f"{name} {version} (now {now})")
    if settings is not None and settings != settings_digest(config):
        changed.append("other options")
    return changed


def told_of(results: Mapping[str, Any], config: Mapping[str, Any] | None) -> str:
    """Returns in a few words with which passes a results file was measured, seen from today.

    Args:
        results: the file as plain data.
        config: the variant's configuration of today; None where there is none.
    """
    if not results.get("passes") or config is None:
        return UNKNOWN
    return ", ".join(changes_since(results["passes"], results.get("settings"), config)) or CURRENT


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in nested plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
