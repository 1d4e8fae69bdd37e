"""Another version of the standard operators for an ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.scopes import graphs_below

if TYPE_CHECKING:
    import onnx


class OnnxOpVersionConversionOptions(ExternalDataOptions):
    """Options of OnnxOpVersionConversion."""

    target_opset: int | None = Field(None, ge=7, description="opset to convert to; the newest that onnx knows by default")


def _apply(model: ModelHandle, options: OnnxOpVersionConversionOptions, context: PassContext) -> ModelHandle:
    from onnx.defs import onnx_opset_version

    target = options.target_opset or onnx_opset_version()

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        before = opset_of(graph)
        changed = convert(graph, target)
        context.say(f"{name}: opset {before} became {target}" if before != target else f"{name}: already of opset {target}")
        return changed

    return rewrite_each(model, context, change, options.external_data())


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of the standard operators that a graph asks for; 1 where it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def at_least(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Returns the graph with an opset of at least `version`."""
    return model if opset_of(model) >= version else convert(model, version)


def convert(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Returns the graph converted to an opset, by onnxscript's converter or onnx's own.

    Raises:
        InvalidRecipe: the opset does not exist, or the graph has operators that it lacks.
    """
    import onnx
    import onnx_ir as ir
    from onnxscript import version_converter

    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise InvalidRecipe(Problem("opset", f"opset {version} does not exist", remedy=f"onnx knows those up to {newest}"))
    if opset_of(model) == version:
        return model
    _check_operators(model, version)
    converted = ir.serde.from_proto(model)
    cause = ""
    try:
        version_converter.convert_version(converted, version, fallback=True)
    except Exception as error:  # converters of single operators raise what they like; the cause is told below
        cause = f": {error}"
    result = ir.serde.to_proto(converted)
    if cause or opset_of(result) != version:
        raise InvalidRecipe(
            Problem(
                "opset",
                f"neither onnxscript nor onnx can convert this graph from opset {opset_of(model)} to {version}{cause}",
                remedy=f"export it again with target_opset {version}",
            )
        )
    return result


def _check_operators(model: onnx.ModelProto, version: int) -> None:
    import onnx

    types = {node.op_type for graph in graphs_below(model.graph) for node in graph.node if node.domain in ("", "ai.onnx")}
    lacking = sorted(kind for kind in types if onnx.defs.has(kind) and not onnx.defs.has(kind, version))
    if lacking:
        raise InvalidRecipe(
            Problem(
                "opset",
                f"opset {version} has no {', '.join(lacking)}",
                remedy=f"export the model again with target_opset {version}, so that they are made of older operators",
            )
        )


PASS = Pass(
    name="OnnxOpVersionConversion",
    summary="Converts a graph to another version of the standard operators.",
    options=OnnxOpVersionConversionOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx", "onnxscript", "onnx-ir"),
)
