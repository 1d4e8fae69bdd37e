"""Imports a recipe's user_script, so that what it registers stays its own.

Scripts are written for Olive: they say ``from olive.data.registry import Registry``. While the script is imported, that name
leads to a registry made for this script alone; nothing of it is left behind in the process, and two scripts with components
of the same name do not meet. Olive itself need not be installed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.data.registry import ComponentRegistry
from runner.errors import DataUnavailable, NotTrusted, Place, RunFailed

_STAND_INS = ("olive", "olive.data", "olive.data.registry")


def load_components(script: Path, script_dir: Path | None = None, *, allowed: bool) -> ComponentRegistry:
    """Returns what the script registers.

    Args:
        script: the Python file.
        script_dir: folder of further modules that the script imports; the script's own folder is always searched.
        allowed: whether code from there may run.

    Raises:
        NotTrusted: it may not.
        DataUnavailable: there is no such file.
        RunFailed: the script raised while it was imported.
    """
    if not script.is_file():
        raise DataUnavailable(f"there is no user script {script}", "paths are relative to the configuration")
    if not allowed:
        raise NotTrusted([script.name], Place(str(script)))
    registry = ComponentRegistry()
    spec = importlib.util.spec_from_file_location(f"recipe_data_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise DataUnavailable(f"{script} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _stand_ins(registry), _importable([script.resolve().parent, *([script_dir] if script_dir else [])]):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise RunFailed("script-failed", f"{script} raised {type(error).__name__} on import: {error}") from error
    return registry


@contextmanager
def _stand_ins(registry: ComponentRegistry) -> Iterator[None]:
    """Puts modules in Olive's place whose `Registry` is this one, and takes them away again."""
    kept = {name: module for name, module in sys.modules.items() if name == "olive" or name.startswith("olive.")}
    for name in kept:
        del sys.modules[name]
    for name in _STAND_INS:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["olive"].__dict__["data"] = sys.modules["olive.data"]
    sys.modules["olive.data"].__dict__["registry"] = sys.modules["olive.data.registry"]
    sys.modules["olive.data.registry"].__dict__["Registry"] = registry
    try:
        yield
    finally:
        for name in _STAND_INS:
            del sys.modules[name]
        sys.modules.update(kept)


@contextmanager
def _importable(folders: list[Path]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before
