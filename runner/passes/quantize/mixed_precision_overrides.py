"""Which weights static quantisation gives 16 bits, because activations that they meet have 16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx

_ELEMENT_WISE = ("Add", "Sub", "Mul", "Div")
_TYPES = ("QUInt16", "QInt16", "QUInt8", "QInt8")
_WIDE = "QUInt16"
_COPY = "_MixedPrecision_copy"


class MixedPrecisionOverridesOptions(ExternalDataOptions):
    """Options of MixedPrecisionOverrides."""

    overrides_config: dict[str, str] | str = Field(
        description="types of activations by the tensors' names, such as QUInt16; or a JSON file of them"
    )
    element_wise_binary_ops: list[str] | None = Field(
        None, description="operators whose inputs must be of one type; Add, Sub, Mul and Div by default"
    )

    @field_validator("overrides_config")
    @classmethod
    def _known_types(cls, given: dict[str, str] | str) -> dict[str, str] | str:
        if isinstance(given, dict):
            for tensor, kind in given.items():
                if kind not in _TYPES:
                    raise ValueError(f"{tensor}: there is no type '{kind}'; {did_you_mean(kind, _TYPES)}")
        return given


def _apply(model: ModelHandle, options: MixedPrecisionOverridesOptions, context: PassContext) -> ModelHandle:
    wide = {tensor for tensor, kind in _overrides(options).items() if kind == _WIDE}
    graph = read_graph(model.path, weights=False).graph
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    if lost := sorted(wide - made - {tensor.name for tensor in graph.initializer}):
        raise InvalidRecipe(
            *(
                Problem("unknown-tensor", f"overrides_config: the graph has no tensor '{one}'", remedy=did_you_mean(one, made))
                for one in lost[:5]
            )
        )
    weights: set[str] = set()

    def change(whole: onnx.ModelProto, name: str) -> onnx.ModelProto:
        weights.update(widen(whole.graph, wide, tuple(options.element_wise_binary_ops or _ELEMENT_WISE)))
        context.say(f"{name}: 16 bits for {len(wide)} activations and {len(weights)} weights that they meet")
        return whole

    done = rewrite_each(model, context, change, options.external_data())
    overrides = {tensor: [{"quant_type": _WIDE}] for tensor in sorted(wide | weights)}
    return done.with_attributes(mixed_precision_overrides=overrides)


def _overrides(options: MixedPrecisionOverridesOptions) -> Mapping[str, str]:
    if isinstance(options.overrides_config, dict):
        return options.overrides_config
    path = Path(options.overrides_config)
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return MixedPrecisionOverridesOptions.model_validate({"overrides_config": found}).overrides_config  # type: ignore[return-value]
    except (OSError, ValueError) as error:
        raise InvalidRecipe(Problem("overrides-config", f"{path} cannot be read as types by tensor: {error}")) from error


def widen(graph: onnx.GraphProto, wide: set[str], operators: tuple[str, ...]) -> set[str]:
    """Gives element-wise operators that work on a 16-bit activation weights of 16 bits.

    A weight that other operators read as well is copied for them, so that it can have another type there.

    Args:
        graph: changed in place.
        wide: activations of 16 bits.
        operators: types whose inputs must be of one type.

    Returns:
        The names of the weights that get 16 bits.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    meeting: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in operators and wide & {*node.input, node.output[0]}:
            for name in node.input:
                if name in weights and name not in wide:
                    meeting.setdefault(name, []).append(node)
    found = set()
    for name, nodes in meeting.items():
        readers = [node for node in graph.node if name in node.input]
        if len(readers) == len(nodes):
            found.add(name)
            continue
        copy = graph.initializer.add()
        copy.CopyFrom(weights[name])
        copy.name = name + _COPY
        for node in nodes:
            for at, given in enumerate(node.input):
                if given == name:
                    node.input[at] = copy.name
        found.add(copy.name)
    return found


PASS = Pass(
    name="MixedPrecisionOverrides",
    summary="Finds the weights that need 16 bits because of activations with 16, for OnnxStaticQuantization.",
    options=MixedPrecisionOverridesOptions,
    apply=_apply,
    takes=("onnx",),
    gives=None,
    packages=("onnx",),
)
