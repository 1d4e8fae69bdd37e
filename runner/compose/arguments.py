"""Checks of what a Python program hands in, where the command line checks the same by the types of its options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from runner.errors import UsageError
from runner.recipe.quantities import size_of


def check_count(name: str, given: Any) -> None:
    """Raises a `UsageError` unless `given` is a whole number from 1 on."""
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UsageError("bad-argument", f"{name} is a whole number from 1 on, not {given!r}", f"such as {name}=2")


def check_threads(given: Any) -> None:
    """Raises a `UsageError` unless `given` is a number of threads, or None for one a core."""
    if given is not None:
        check_count("threads", given)


def check_timeout(given: Any) -> None:
    """Raises a `UsageError` unless `given` is a time in seconds, or None for no limit."""
    if given is not None and not _positive(given):
        raise UsageError("bad-argument", f"timeout is a time in seconds above 0, not {given!r}", "such as timeout=600")


def memory_bytes(given: Any) -> int | None:
    """Returns a limit of memory in bytes, from a number of bytes or a text such as ``8GB``; None for no limit.

    Raises:
        UsageError: it is neither.
    """
    if given is None:
        return None
    try:
        found = int(size_of(given)) if isinstance(given, str) else int(given) if _positive(given) else 0
    except ValueError:
        found = 0
    if found < 1:
        raise UsageError(
            "bad-argument",
            f"max_memory is a number of bytes above 0, or a text with a unit, not {given!r}",
            'such as max_memory=8_000_000_000 or max_memory="8GB"',
        )
    return found


def override_texts(given: Any) -> tuple[str, ...]:
    """Returns overrides as the `path=value` texts of the command line, from a mapping of dotted paths to values.

    Raises:
        UsageError: it is no such mapping, or a value cannot stand in a configuration.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not all(isinstance(path, str) for path in given):
        raise UsageError(
            "bad-argument",
            f"overrides map dotted paths to values, and this is {given!r}",
            'such as overrides={"passes.build.int4_block_size": 64}',
        )
    return tuple(f"{path}={_json(path, value)}" for path, value in given.items())


def _json(path: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise UsageError(
            "bad-argument",
            f"overrides: {path}: a {kind} cannot stand in a configuration",
            "give a text, number, list or mapping",
        ) from None


def check_is(name: str, given: Any, kind: type, example: str) -> None:
    """Raises a `UsageError` unless `given` is None or of the class; `example` shows how one is made."""
    if given is not None and not isinstance(given, kind):
        raise UsageError("bad-argument", f"{name} is a {kind.__module__}.{kind.__name__}, not {given!r}", f"such as {example}")


def _positive(given: Any) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < math.inf
