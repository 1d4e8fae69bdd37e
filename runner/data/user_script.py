"""Imports a recipe's own Python files, so that what they register and import stays their own.

Scripts are written for Olive: they say ``from olive.data.registry import Registry``. While a script is imported, and
whenever one of its functions runs, these names lead to stand-ins made for this script alone (`runner.data.olive_modules`),
and modules that lie beside it are its own as well. Nothing of it is left behind in the process, so two scripts with
components, or neighbours, of the same name do not meet. Olive itself need not be installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.data.olive_modules import EvaluatorRegistry, NotServed, is_olives, served, stand_ins
from runner.data.registry import ComponentRegistry
from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, Place, Problem, RecipeError, RunFailed, did_you_mean


@dataclass
class UserScript:
    """An imported script.

    Attributes:
        path: its file.
        folders: where it finds its neighbours.
        components: the data components that it registered.
        evaluators: the evaluators that it registered.
        modules: the modules that only it sees: the stand-ins, itself, and its neighbours.
    """

    path: Path
    folders: tuple[Path, ...]
    components: ComponentRegistry = field(default_factory=ComponentRegistry)
    evaluators: EvaluatorRegistry = field(default_factory=EvaluatorRegistry)
    modules: dict[str, types.ModuleType] = field(default_factory=dict)

    def function(self, name: str) -> Callable[..., Any]:
        """Returns a function (or class) of the script, which sees the script's own modules whenever it runs.

        Raises:
            InvalidRecipe: the script has none of that name.
        """
        module = self.modules[self._own_name]
        found = getattr(module, name, None)
        if not callable(found):
            names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise InvalidRecipe(
                Problem("missing-function", f"{self.path} has no function '{name}'", remedy=did_you_mean(name, names))
            )
        return self.bound(found)

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` so that it sees the script's own modules whenever it runs."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.active():
                return function(*args, **kwargs)

        return run

    @contextmanager
    def active(self) -> Iterator[None]:
        """Puts the script's own modules and folders in front of the process's, and takes them away again."""
        if any(isinstance(finder, _Refusing) and finder.script is self for finder in sys.meta_path):
            yield  # one of its functions calls another
            return
        hidden = {name: module for name, module in sys.modules.items() if is_olives(name) or name in self.modules}
        path = list(sys.path)
        finder = _Refusing(self)
        for name in hidden:
            del sys.modules[name]
        before = set(sys.modules)
        sys.modules.update(self.modules)
        sys.path[:0] = [str(folder) for folder in self.folders]
        sys.meta_path.insert(0, finder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            sys.path[:] = path
            self.modules.update({name: module for name, module in _new_since(before) if self._is_neighbour(name, module)})
            for name in self.modules:
                sys.modules.pop(name, None)
            sys.modules.update(hidden)

    def execute(self) -> None:
        """Imports the script.

        Raises:
            RunFailed: it raised, or it imports a name of Olive that is not served.
        """
        spec = importlib.util.spec_from_file_location(self._own_name, self.path)
        if spec is None or spec.loader is None:
            raise DataUnavailable(f"{self.path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        self.modules.update(stand_ins(self.components, self.evaluators), **{self._own_name: module})
        with self.active():
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                raise script_failure(self.path, error) from error

    @property
    def _own_name(self) -> str:
        return f"recipe_script_{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]}"

    def _is_neighbour(self, name: str, module: types.ModuleType) -> bool:
        """Says whether a module lies beside the script, rather than in an environment that happens to be below its folder."""
        if name.partition(".")[0] == "runner":
            return False
        file = getattr(module, "__file__", None)
        paths = [Path(path).resolve() for path in ([file] if file else getattr(module, "__path__", []))]
        return any(
            path.is_relative_to(folder) and not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts)
            for path in paths
            for folder in self.folders
        )


class _Refusing(importlib.abc.MetaPathFinder):
    """Answers for Olive's modules that have no stand-in, so that an installed Olive is never imported in their place."""

    def __init__(self, script: UserScript) -> None:
        self.script = script

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if is_olives(fullname) and fullname not in served():
            raise NotServed(fullname)
        return None


def _new_since(before: set[str]) -> list[tuple[str, types.ModuleType]]:
    return [(name, module) for name, module in list(sys.modules.items()) if name not in before]


def import_script(script: Path, script_dir: Path | None = None) -> UserScript:
    """Imports a Python file; what it registers and imports is seen by it alone.

    Args:
        script: the file.
        script_dir: folder of further modules that it imports; its own folder is always searched.

    Raises:
        InvalidRecipe: there is no such file.
        RunFailed: it raised while it was imported.
    """
    if not script.is_file():
        raise InvalidRecipe(
            Problem("missing-script", f"there is no Python file {script}", remedy="paths are relative to the configuration")
        )
    folders = dict.fromkeys(one.resolve() for one in (script.parent, script_dir) if one is not None)
    imported = UserScript(script.resolve(), tuple(folders))
    imported.execute()
    return imported


def load_components(script: Path, script_dir: Path | None = None, *, allowed: bool) -> UserScript:
    """Returns a data configuration's script with what it registered.

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
    return import_script(script, script_dir)


def script_failure(script: Path | str, error: Exception, called: str | None = None) -> RecipeError:
    """Returns the error that tells a person what went wrong in their script.

    Args:
        script: the script.
        error: what it raised.
        called: what of it ran, such as ``load()``; None while it was imported.
    """
    if isinstance(error, RecipeError):
        return error
    if isinstance(error, NotServed):
        return RunFailed(
            "olive-name-not-served",
            f"{script} imports '{error.wanted}', which this runner does not stand in for",
            "write that part with plain Python, torch or transformers, or run this recipe with Olive",
        )
    kind, text = type(error).__name__, (str(error).strip() or "no message").splitlines()[0]
    told = f"{script}: {called} raised {kind}: {text}" if called else f"{script} raised {kind} on import: {text}"
    remedy = f"pip install {error.name}" if isinstance(error, ModuleNotFoundError) and error.name else None
    return RunFailed("script-failed", told, remedy)
