"""Fixed sizes in place of the open axes of a graph's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.files import graphs_of, read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx


class DynamicToFixedShapeOptions(ExternalDataOptions):
    """Options of DynamicToFixedShape: either axes by their names, or whole inputs."""

    dim_param: list[str] | None = Field(None, description="names of axes")
    dim_value: list[int] | None = Field(None, description="their sizes, in the same order")
    input_name: list[str] | None = Field(None, description="names of inputs")
    input_shape: list[list[int]] | None = Field(None, description="their shapes, in the same order")

    @model_validator(mode="after")
    def _one_way(self) -> DynamicToFixedShapeOptions:
        if bool(self.dim_param) == bool(self.input_name):
            raise ValueError("give either dim_param with dim_value, or input_name with input_shape")
        for names, values, what in (
            (self.dim_param, self.dim_value, "dim_param and dim_value"),
            (self.input_name, self.input_shape, "input_name and input_shape"),
        ):
            if len(names or ()) != len(values or ()):
                raise ValueError(f"{what} must have the same number of entries")
        if any(size < 0 for size in self.dim_value or ()):
            raise ValueError("dim_value holds a negative size")
        if any(size < 1 for shape in self.input_shape or () for size in shape):
            raise ValueError("input_shape holds a size below 1")
        return self


def _apply(model: ModelHandle, options: DynamicToFixedShapeOptions, context: PassContext) -> ModelHandle:
    sizes = _axes(model, options)
    shapes = dict(zip(options.input_name or (), options.input_shape or (), strict=True))

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        light = read_graph(model.folder / name, weights=False)
        for one in (graph, light):
            _fix(one, sizes, shapes)
        open_axes = _settle_outputs(graph, light)
        context.say(f"{name}: " + (f"outputs still open: {', '.join(open_axes)}" if open_axes else "every shape is fixed"))
        return graph

    return rewrite_each(model, context, change, options.external_data())


def _axes(model: ModelHandle, options: DynamicToFixedShapeOptions) -> dict[str, int]:
    """Returns the size of every named axis that the options decide, over all graphs of the model.

    Raises:
        InvalidRecipe: names that no graph has while axes stay open, ranks that differ, or two sizes for one axis.
    """
    graphs = [read_graph(model.folder / name, weights=False).graph for name in graphs_of(model)]
    inputs = {value.name: value for graph in graphs for value in graph.input}
    known = dict.fromkeys(axis for value in inputs.values() for axis in _named_axes(value))
    if options.dim_param:
        sizes = dict(zip(options.dim_param, options.dim_value or (), strict=True))
        twice = {axis for axis in sizes if len(set(_sizes_of(axis, options))) > 1}
        problems = [f"dim_param gives axis '{axis}' two sizes" for axis in sorted(twice)]
        still_open = [axis for axis in known if axis not in sizes]
        missing = [axis for axis in sizes if axis not in known]
        if missing and still_open:
            problems += [f"no input has an axis '{axis}', and still open are {', '.join(still_open)}" for axis in missing]
        _refuse(problems, f"the axes of this model: {', '.join(known) or 'all fixed'}")
        return sizes
    return _axes_of_shapes(dict(zip(options.input_name or (), options.input_shape or (), strict=True)), inputs)


def _sizes_of(axis: str, options: DynamicToFixedShapeOptions) -> Iterator[int]:
    return (size for name, size in zip(options.dim_param or (), options.dim_value or (), strict=True) if name == axis)


def _axes_of_shapes(shapes: Mapping[str, Sequence[int]], inputs: Mapping[str, onnx.ValueInfoProto]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    problems = []
    for name, shape in shapes.items():
        if name not in inputs:
            problems.append(f"the model has no input '{name}'; {did_you_mean(name, inputs)}")
            continue
        axes = inputs[name].type.tensor_type.shape.dim
        if len(axes) != len(shape):
            problems.append(f"input '{name}' has {len(axes)} axes ({_shown(inputs[name])}), input_shape gives {len(shape)}")
            continue
        for axis, size in zip(axes, shape, strict=True):
            fixed = axis.dim_value if axis.dim_value > 0 else sizes.get(axis.dim_param)
            if fixed not in (None, size):
                problems.append(f"axis '{axis.dim_param or fixed}' of input '{name}' is {fixed}, input_shape gives {size}")
            if axis.dim_param:
                sizes[axis.dim_param] = size
    shown = "; ".join(f"{value.name} [{_shown(value)}]" for value in inputs.values())
    _refuse(problems, f"the inputs of this model: {shown}")
    return sizes


def _refuse(problems: Sequence[str], remedy: str) -> None:
    if problems:
        raise InvalidRecipe(*(Problem("fixed-shape", cause, remedy=remedy) for cause in problems))


def _named_axes(value: onnx.ValueInfoProto) -> list[str]:
    return [axis.dim_param for axis in value.type.tensor_type.shape.dim if axis.dim_param]


def _shown(value: onnx.ValueInfoProto) -> str:
    axes = value.type.tensor_type.shape.dim
    return ", ".join(axis.dim_param or (str(axis.dim_value) if axis.HasField("dim_value") else "?") for axis in axes)


def _fix(model: onnx.ModelProto, sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> None:
    """Sets the sizes of axes by name everywhere in a graph, and the shapes of whole inputs."""
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed, make_input_shape_fixed

    for axis, size in sizes.items():
        make_dim_param_fixed(model.graph, axis, size)
    for value in model.graph.input:
        if value.name in shapes:
            make_input_shape_fixed(model.graph, value.name, list(shapes[value.name]))


def _settle_outputs(model: onnx.ModelProto, light: onnx.ModelProto) -> list[str]:
    """Gives the outputs the shapes that follow from the inputs'; returns the names of those that stay open.

    Args:
        model: the graph with its weights.
        light: the same without, as small as shape inference needs it.
    """
    import onnx
    from onnxruntime.tools.onnx_model_utils import is_fixed_size_tensor

    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        if not is_fixed_size_tensor(value) and is_fixed_size_tensor(found):
            value.type.tensor_type.shape.CopyFrom(found.type.tensor_type.shape)
    return [value.name for value in model.graph.output if not is_fixed_size_tensor(value)]


PASS = Pass(
    name="DynamicToFixedShape",
    summary="Fixes the open axes of a graph's inputs to sizes.",
    options=DynamicToFixedShapeOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx", "onnxruntime"),
)
