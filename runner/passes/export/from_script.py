"""What torch's exporter is given for a model that a recipe's script loads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.data.scripted_model import IoConfig, example_inputs, io_config, load_module
from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput, made_up
from runner.passes.export.from_transformers import tensors
from runner.passes.export.torch_export import Export

if TYPE_CHECKING:
    import torch


def export_of_script(model: ModelHandle) -> Export:
    """Returns the export of a scripted model: the example of its dummy_inputs_func, or one of io_config's shapes.

    Raises:
        InvalidRecipe: nothing says what the inputs are, or io_config names an input that forward does not take.
        RunFailed: a function of the script raised.
    """
    io = io_config(model)
    module = load_module(model)
    args, kwargs = _example(model, module, io)
    names = _graph_names(module, args, kwargs, io)
    shapes = _by_parameter(io.dynamic_shapes, args, kwargs, names)
    outputs = io.output_names or None
    return Export(module, args, kwargs, names, outputs, io.dynamic_axes, shapes, io.string_to_int_dim_params, True)


def _example(model: ModelHandle, module: torch.nn.Module, io: IoConfig) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns (positional, named) example inputs, the named ones in the order of forward's parameters."""
    example = example_inputs(model)
    if example is None:
        example = _made_up(model, io)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if not isinstance(example, Mapping):
        return (example,), {}
    parameters = inspect.signature(module.forward).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    unknown = [str(name) for name in example if name not in parameters]
    if unknown and not takes_any:
        if len(unknown) < len(example):
            raise InvalidRecipe(
                Problem(
                    "bad-example-inputs",
                    f"the example has an input '{unknown[0]}', which forward of {type(module).__name__} does not take",
                    remedy=f"it takes {', '.join(parameters)}",
                )
            )
        return tuple(example.values()), {}  # named as the graph's inputs are: their order counts
    known = [name for name in parameters if name in example]
    return (), {name: example[name] for name in [*known, *unknown]}


def _made_up(model: ModelHandle, io: IoConfig) -> dict[str, torch.Tensor]:
    if not io.input_names or not io.input_shapes:
        raise InvalidRecipe(
            Problem(
                "no-example-inputs",
                "the inputs of the scripted model are not known",
                remedy="set input_model.dummy_inputs_func, or input_names and input_shapes in input_model.io_config",
            )
        )
    types = io.input_types or ("float32",) * len(io.input_names)
    inputs = [GraphInput(*one) for one in zip(io.input_names, types, io.input_shapes, strict=True)]
    return tensors(made_up(inputs, model.folder))


def _graph_names(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], io: IoConfig) -> list[str]:
    """Returns the names of the graph's inputs, one a tensor: io_config's, which also lists switches that are no tensors."""
    parameters = list(inspect.signature(module.forward).parameters)
    if kwargs and set(kwargs) <= set(io.input_names):
        labels: Sequence[str] = list(kwargs)
    elif kwargs:
        labels = [*io.input_names, *list(kwargs)[len(io.input_names) :]]
    else:
        labels = [*io.input_names, *parameters[len(io.input_names) :]]
    values = list(kwargs.values()) if kwargs else list(args)
    names: list[str] = []
    for at, value in enumerate(values):
        count = _tensors_in(value)
        label = labels[at] if at < len(labels) else f"input_{at}"
        if count == 1:
            names.append(label)
        elif count:
            rest = list(io.input_names)[len(names) :]
            names += rest[:count] if len(rest) >= count else [f"{label}.{part}" for part in range(count)]
    return names


def _tensors_in(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, Mapping):
        return sum(map(_tensors_in, value.values()))
    return sum(map(_tensors_in, value)) if isinstance(value, (tuple, list)) else 0


def _by_parameter(shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Returns dynamic_shapes with exactly the arguments of the call: switches among them have none."""
    if not isinstance(shapes, Mapping):
        return shapes
    if kwargs:
        return {name: shapes.get(name) for name in kwargs}
    return tuple(shapes.get(name) for name in names) if len(names) == len(args) else shapes


def with_axes(export: Export, axes: Mapping[str, Mapping[int, str]] | None) -> Export:
    """Returns the export with further free axes, which win over those that it has."""
    return replace(export, axes={**export.axes, **axes}) if axes else export
