"""Other types for a graph's inputs and outputs: a Cast between them and what the graph computes with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from runner.errors import did_you_mean
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.scopes import graphs_below

if TYPE_CHECKING:
    import onnx

# Numbers of onnx.TensorProto's element types that Cast knows, by their names.
ELEMENT_TYPES = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10,
    "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16, "float8e4m3fn": 17, "float8e4m3fnuz": 18, "float8e5m2": 19,
    "float8e5m2fnuz": 20, "uint4": 21, "int4": 22, "float4e2m1": 23,
}  # fmt: skip
_OTHER_NAMES = {"float32": 1, "float64": 11}
_CONVERTED = "_converted"


def _number(given: Any) -> Any:
    if isinstance(given, str):
        numbers = ELEMENT_TYPES | _OTHER_NAMES
        if given.lower() not in numbers:
            raise ValueError(f"there is no element type '{given}'; {did_you_mean(given.lower(), numbers)}")
        return numbers[given.lower()]
    if isinstance(given, int) and given not in ELEMENT_TYPES.values():
        raise ValueError(f"{given} is no number of an element type; known: 1 float, 10 float16, 16 bfloat16, 7 int64 …")
    return given


ElementType = Annotated[int, BeforeValidator(_number)]


def _expression(given: Any) -> Any:
    if isinstance(given, str):
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"'{given}' is no regular expression: {error}") from error
    return given


class OnnxIODataTypeConverterOptions(ExternalDataOptions):
    """Options of OnnxIODataTypeConverter."""

    name_pattern: Annotated[str | None, BeforeValidator(_expression)] = Field(
        "logits", description="regular expression found in the names of what is converted; everything when null or empty"
    )
    source_dtype: ElementType = Field(10, description="type to convert from: onnx's number or name, such as 10 or float16")
    target_dtype: ElementType = Field(1, description="type to convert to: onnx's number or name, such as 1 or float")

    @model_validator(mode="after")
    def _differ(self) -> OnnxIODataTypeConverterOptions:
        if self.source_dtype == self.target_dtype:
            raise ValueError("source_dtype and target_dtype are the same; nothing would be converted")
        return self


def _apply(model: ModelHandle, options: OnnxIODataTypeConverterOptions, context: PassContext) -> ModelHandle:
    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        done = convert_types(graph, options.name_pattern, options.source_dtype, options.target_dtype)
        told = ", ".join(done) if done else f"none: no input or output of that type whose name has '{options.name_pattern}'"
        context.say(f"{name}: converted {told}")
        return graph

    return rewrite_each(model, context, change, options.external_data())


def convert_types(model: onnx.ModelProto, pattern: str | None, source: int, target: int) -> list[str]:
    """Gives inputs and outputs of the type `source` the type `target`, in place; a Cast stands between.

    Args:
        model: the graph; names and shapes of its inputs and outputs stay.
        pattern: found in the names of those to convert; None or empty means all.
        source: number of an element type of onnx.
        target: likewise.

    Returns:
        The names of what was converted.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants and _meant(value, pattern, source)]
    passed_on = {value.name for value in graph.input}
    outputs = [value for value in graph.output if value.name not in passed_on and _meant(value, pattern, source)]
    for value in inputs:
        _rename(graph, value.name, value.name + _CONVERTED, made=False)
        graph.node.insert(0, _cast(value.name, value.name + _CONVERTED, source))
    for value in outputs:
        _rename(graph, value.name, value.name + _CONVERTED, made=True)
        graph.node.append(_cast(value.name + _CONVERTED, value.name, target))
    for value in (*inputs, *outputs):
        value.type.tensor_type.elem_type = target
    for value in [value for value in graph.output if value.name in {given.name for given in inputs}]:
        value.type.tensor_type.elem_type = target
    return [value.name for value in (*inputs, *outputs)]


def _meant(value: onnx.ValueInfoProto, pattern: str | None, source: int) -> bool:
    return value.type.tensor_type.elem_type == source and (not pattern or re.search(pattern, value.name) is not None)


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("Cast", [source], [result], f"{result}_Cast", to=kind)


def _rename(graph: onnx.GraphProto, old: str, new: str, *, made: bool) -> None:
    """Lets every node that reads a value read another; with `made`, what makes it makes the other as well."""
    for node in (node for one in graphs_below(graph) for node in one.node):
        for names in (node.input, node.output) if made else (node.input,):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new
    for tensor in graph.initializer:
        if made and tensor.name == old:
            tensor.name = new


PASS = Pass(
    name="OnnxIODataTypeConverter",
    summary="Gives inputs and outputs of a graph another type.",
    options=OnnxIODataTypeConverterOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx",),
)
