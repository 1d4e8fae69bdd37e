"""Models that a recipe's own script loads: the module, the names of its inputs and outputs, and example inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.olive_handlers import handler_of
from runner.data.user_script import UserScript, import_script, script_failure
from runner.errors import InvalidRecipe, Problem, RecipeError, RunFailed, did_you_mean
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class IoConfig:
    """The inputs and outputs of a model, as `io_config` of a configuration or a script says them.

    Attributes:
        input_names: names of the inputs in their order; empty where nobody says.
        input_shapes: their example shapes.
        input_types: names of their element types.
        output_names: names of the outputs.
        dynamic_axes: free axes: input or output name to axis to axis name.
        dynamic_shapes: free axes of the inputs in torch.export's nested form.
        string_to_int_dim_params: axis names that are sizes in truth, written as text.
        kv_cache: the input past_key_values is made up as one pair of tensors a layer.
    """

    input_names: tuple[str, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    input_types: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    dynamic_shapes: Any = None
    string_to_int_dim_params: tuple[str, ...] = ()
    kv_cache: bool = False


_KEYS = (*IoConfig.__dataclass_fields__, "output_shapes", "output_types")


def load_module(model: ModelHandle) -> torch.nn.Module:
    """Returns the module of an `hf` handle (fp32) or of a `pytorch` handle (as its script makes it): on the CPU, evaluating.

    A `pytorch` handle's attributes name `model_script`, `model_loader` (its function from `model_path` to a module) and
    `script_dir` where the script imports from a folder of its own.

    Raises:
        ModelUnavailable: files are missing, truncated or do not fit the configuration.
        InvalidRecipe: the kind, task, script or loader does not exist.
        RunFailed: the recipe's own loader raised, or made no module.
    """
    if model.kind != "pytorch":
        return load_torch(model)
    import torch

    loader = model.attributes.get("model_loader")
    if not model.attributes.get("model_script") or not loader:
        raise InvalidRecipe(
            Problem(
                "no-loader", "a PyTorchModel needs model_script and model_loader", remedy="name the function that returns it"
            )
        )
    made = _call(model, str(loader), model.attributes.get("model_path"))
    if not isinstance(made, torch.nn.Module):
        raise RunFailed(
            "loader-failed",
            f"{model.attributes['model_script']}: {loader}() returned {_told(made)}, no torch.nn.Module",
            "return the module from the function",
        )
    return made.to("cpu").eval()


def io_config(model: ModelHandle) -> IoConfig:
    """Returns what the configuration, or the function of the script that it names, says of inputs and outputs.

    Raises:
        InvalidRecipe: it is no mapping, has an unknown key, or its lists are of different lengths.
        RunFailed: the function raised.
    """
    given = model.attributes.get("io_config") or {}
    if isinstance(given, str):
        given = _call(model, given, _handed(model))
    if not isinstance(given, Mapping):
        raise _bad_io_config(f"io_config is {_told(given)}; a mapping was expected")
    unknown = next((str(key) for key in given if key not in _KEYS), None)
    if unknown:
        raise _bad_io_config(f"io_config has no key '{unknown}'", did_you_mean(unknown, _KEYS))
    names = tuple(given.get("input_names") or ())
    shapes = tuple(tuple(int(size) for size in shape) for shape in given.get("input_shapes") or ())
    types = tuple(str(one).removeprefix("torch.") for one in given.get("input_types") or ())
    for key, listed in (("input_shapes", shapes), ("input_types", types)):
        if listed and len(listed) != len(names):
            raise _bad_io_config(f"io_config names {len(names)} inputs and has {len(listed)} {key}")
    return IoConfig(
        names,
        shapes,
        types,
        tuple(given.get("output_names") or ()),
        {name: _axes(name, axes) for name, axes in (given.get("dynamic_axes") or {}).items() if axes},
        _with_int_axes(given.get("dynamic_shapes")),
        tuple(given.get("string_to_int_dim_params") or ()),
        bool(given.get("kv_cache")),
    )


def _bad_io_config(cause: str, remedy: str = "mend input_model.io_config") -> InvalidRecipe:
    return InvalidRecipe(Problem("bad-io-config", cause, remedy=remedy))


def _axes(name: str, axes: Mapping[Any, str] | Sequence[int]) -> dict[int, str]:
    if isinstance(axes, Mapping):
        return {int(axis): str(label) for axis, label in axes.items()}
    return {int(axis): f"{name}_{axis}" for axis in axes}


def _with_int_axes(shapes: Any) -> Any:
    """Returns nested shapes with their axes as integers, which JSON has as texts."""
    if isinstance(shapes, Mapping):
        return {int(key) if str(key).lstrip("-").isdigit() else key: _with_int_axes(value) for key, value in shapes.items()}
    return type(shapes)(map(_with_int_axes, shapes)) if isinstance(shapes, (list, tuple)) else shapes


def example_inputs(model: ModelHandle) -> Any:
    """Returns what the script's `dummy_inputs_func` gives; None where none is named.

    Raises:
        RunFailed: it raised, or gave nothing.
    """
    name = model.attributes.get("dummy_inputs_func")
    if not name:
        return None
    given = _call(model, str(name), _handed(model))
    if given is None:
        raise RunFailed(
            "script-failed",
            f"{model.attributes['model_script']}: {name}() returned nothing",
            "return a mapping from input name to tensor, a tuple of tensors, or one tensor",
        )
    return given


def _handed(model: ModelHandle) -> Any:
    """The model as the functions of a script are handed it."""
    handler = handler_of(model)
    handler.model_path = str(model.attributes.get("model_path") or model.folder)
    return handler


def _call(model: ModelHandle, name: str, argument: Any) -> Any:
    path = Path(model.attributes["model_script"])
    if not path.is_file():
        raise InvalidRecipe(Problem("missing-script", f"there is no Python file {path}"))
    function = _script(path, path.stat().st_mtime_ns, model.attributes.get("script_dir")).function(name)
    try:
        return function(argument) if inspect.signature(function).parameters else function()
    except RecipeError:
        raise
    except Exception as error:
        raise script_failure(path, error, f"in {name}()") from error


@functools.lru_cache(maxsize=8)
def _script(path: Path, changed: int, script_dir: str | None) -> UserScript:
    """Returns the imported script; an edited file is another one."""
    return import_script(path, Path(script_dir) if script_dir else None)


def _told(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
