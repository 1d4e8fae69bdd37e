"""Takes the weights of an adapter out of a graph into a file of their own, so that adapters can be exchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from runner.errors import InvalidRecipe, Problem
from runner.models.adapter import ADAPTER_ATTRIBUTES
from runner.models.adapter_weights import Format, save_weights
from runner.models.files import graphs_of
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx

MAGNITUDE = "lora_magnitude_vector"
_LORA = ("lora_A", "lora_B")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_FACTORS = {"lora": _LORA, "dora": (*_LORA, MAGNITUDE), "loha": _LOHA}
# Of an exported graph: module path, factor, adapter's name; of the GenAI builder's: path, factor, operator. What a quantiser
# appends stays behind the name.
_NAME = re.compile(
    rf"(?P<path>.*?)\.(?P<factor>{'|'.join((*_LORA, MAGNITUDE, *_LOHA))})"
    r"(?:\.default|\.MatMul)?(?:\.weight)?(?P<rest>[._]\w+)?$"
)
_WRAPPER = "model."  # the module that the exporter wraps around a transformers model
_FIRST_RANK_AXIS = ("lora_A", "hada_w1_b", "hada_w2_b")  # factors of shape [r, n] as peft stores them; the others are [n, r]


class ExtractAdaptersOptions(ExternalDataOptions):
    """Options of ExtractAdapters."""

    adapter_type: Literal["lora", "dora", "loha"] = Field("lora", description="kind of the adapter in the graph")
    make_inputs: bool = Field(
        True,
        description="the weights become inputs of the graph; false leaves them initializers that the graph reads "
        "from adapter_weights.safetensors",
    )
    dynamic_lora_r: bool = Field(True, description="leave the rank of the inputs free, so that adapters of any rank fit")
    optional_inputs: bool = Field(True, description="without an adapter given, the graph computes what its base model does")
    save_format: Format = Field("onnx_adapter", description="format of the file that the weights go to")


@dataclass(frozen=True)
class Factor:
    """A tensor of the adapter in the graph.

    Attributes:
        tensor: the initializer.
        name: what it is called in the file.
        kind: the factor that it is.
        rank_axis: its axis that is the rank; None where it has none, or where its numbers are quantised.
    """

    tensor: onnx.TensorProto
    name: str
    kind: str
    rank_axis: int | None


@dataclass
class Extracted:
    """What was taken out of the graphs of a model: arrays by name, and the file they are in."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    file: str = ""


def _apply(model: ModelHandle, options: ExtractAdaptersOptions, context: PassContext) -> ModelHandle:
    taken = Extracted()

    def change(graph: onnx.ModelProto, file: str) -> onnx.ModelProto:
        factors = find_factors(graph.graph, options.adapter_type, wrapped=model.kind == "onnx")
        if factors and taken.file:
            raise InvalidRecipe(
                Problem("two-adapters", f"ExtractAdapters: {file} is the second graph of the model that has an adapter")
            )
        if options.make_inputs:
            _refuse_quantised(factors)
        if factors:
            _extract(graph.graph, factors, options, context.output, taken)
        return graph

    written = rewrite_each(model, context, change, options.external_data())
    if not taken.file:
        raise InvalidRecipe(_nothing_found(model, options.adapter_type))
    size = sum(one.nbytes for one in taken.weights.values())
    context.say(f"took {len(taken.weights)} weights ({size / 1e6:.1f} MB) out into {taken.file}")
    attributes = {key: value for key, value in written.attributes.items() if key not in ADAPTER_ATTRIBUTES}
    told = {
        "file": taken.file,
        "supplied_as": "inputs" if options.make_inputs else "initializers",
        "type": options.adapter_type,
    }
    return ModelHandle(model.kind, context.output, model.file, model.task, {**attributes, "adapter_weights": told})


def _refuse_quantised(factors: Iterable[Factor]) -> None:
    quantised = [one.tensor.name for one in factors if one.rank_axis is None and one.kind != MAGNITUDE]
    if quantised:
        raise InvalidRecipe(
            Problem(
                "quantised-adapter",
                f"ExtractAdapters: {quantised[0]} is quantised, and has neither a free rank nor a value that changes nothing",
                remedy="put ExtractAdapters before the quantisation, build the model in fp16 or fp32, or set make_inputs false",
            )
        )


def _nothing_found(model: ModelHandle, kind: str) -> Problem:
    other = model.attributes.get("adapter_type")
    if other and other != kind and other in _FACTORS:
        return Problem("no-adapter", f"ExtractAdapters: the adapter is no {kind}", remedy=f"set adapter_type to {other}")
    return Problem(
        "no-adapter",
        f"ExtractAdapters: {', '.join(graphs_of(model))} has no weights that are named as a {kind} adapter's",
        remedy="train an adapter before the graph is made, and put ExtractAdapters before passes that fold or rename weights",
    )


def find_factors(graph: onnx.GraphProto, kind: str, *, wrapped: bool) -> list[Factor]:
    """Returns the tensors of an adapter, in the order of the graph's initializers.

    Args:
        graph: the graph that is searched.
        kind: ``lora``, ``dora`` or ``loha``.
        wrapped: the names have the exporter's wrapper in front.

    Raises:
        InvalidRecipe: the graph's LoRA is a DoRA.
    """
    wanted = _FACTORS[kind]
    matched = [(tensor, found) for tensor in graph.initializer if (found := _NAME.fullmatch(tensor.name))]
    if kind == "lora" and any(found["factor"] == MAGNITUDE for _, found in matched):
        raise InvalidRecipe(
            Problem("wrong-adapter-type", "ExtractAdapters: the adapter is a DoRA", remedy="set adapter_type to dora")
        )
    transposed = {
        node.input[at]
        for node in graph.node
        for at in range(len(node.input))
        if node.op_type == "Transpose" or (node.op_type == "Gemm" and at == 1 and _flag(node, "transB"))
    }
    factors = []
    for tensor, found in matched:
        factor, rest = found["factor"], found["rest"] or ""
        if factor in wanted:
            path = found["path"].removeprefix(_WRAPPER) if wrapped else found["path"]
            axis = None if rest or factor == MAGNITUDE else _rank_axis(factor, tensor.name in transposed)
            factors.append(Factor(tensor, f"{path}.{factor}.weight{rest}", factor, axis))
    return factors


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(one.name == name and one.i for one in node.attribute)


def _rank_axis(factor: str, transposed: bool) -> int:
    first = factor in _FIRST_RANK_AXIS
    if factor in _LORA and not transposed:  # it stands in the graph as a MatMul reads it: [in, r] and [r, out]
        first = not first
    return 0 if first else 1


def _extract(
    graph: onnx.GraphProto, factors: list[Factor], options: ExtractAdaptersOptions, output: Path, taken: Extracted
) -> None:
    from onnx import numpy_helper

    taken.weights = {one.name: numpy_helper.to_array(one.tensor) for one in factors}
    taken.file = save_weights(taken.weights, output, "adapter_weights", options.save_format)
    lengths = _base_lengths(graph, factors) if options.make_inputs and options.optional_inputs else {}
    _rename(graph, {one.tensor.name: one.name for one in factors})
    if options.make_inputs:
        _to_inputs(graph, factors, taken.weights, lengths, options)
    else:
        beside = taken.file
        if options.save_format != "safetensors":
            beside = save_weights(taken.weights, output, "adapter_weights", "safetensors")
        _to_file(factors, output / beside)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _to_inputs(
    graph: onnx.GraphProto,
    factors: Iterable[Factor],
    weights: Mapping[str, np.ndarray],
    lengths: Mapping[str, np.ndarray],
    options: ExtractAdaptersOptions,
) -> None:
    from onnx import helper, numpy_helper

    ranks = {weights[one.name].shape[one.rank_axis] for one in factors if one.rank_axis is not None}
    for one in factors:
        shape: list[int | str] = list(one.tensor.dims)
        free = options.dynamic_lora_r and one.rank_axis is not None
        if free and one.rank_axis is not None:
            shape[one.rank_axis] = "lora_r" if len(ranks) == 1 else f"lora_r{shape[one.rank_axis]}"
        graph.input.append(helper.make_tensor_value_info(one.name, one.tensor.data_type, shape))
        default = _without_adapter(one, weights[one.name], lengths, free=free) if options.optional_inputs else None
        if default is None:
            graph.initializer.remove(one.tensor)
        else:
            one.tensor.CopyFrom(numpy_helper.from_array(default, one.name))
    if options.dynamic_lora_r:
        del graph.value_info[:]  # its shapes have the rank that the adapter had


def _without_adapter(one: Factor, weight: np.ndarray, lengths: Mapping[str, np.ndarray], *, free: bool) -> np.ndarray | None:
    """Returns the value of an input with which the adapter changes nothing; None where there is none."""
    import numpy as np

    if one.kind == MAGNITUDE:
        return lengths.get(one.name)
    if one.rank_axis is None:
        return None
    shape = list(weight.shape)
    if free:
        shape[one.rank_axis] = 0
    nothing: np.ndarray = np.zeros(shape, weight.dtype)
    return nothing


def _base_lengths(graph: onnx.GraphProto, factors: Iterable[Factor]) -> dict[str, np.ndarray]:
    """Returns the lengths of the base weights' rows by the name of the DoRA magnitude that stands for them."""
    import numpy as np
    from onnx import numpy_helper

    by_name = {tensor.name: tensor for tensor in graph.initializer}
    lengths = {}
    for one in factors:
        base = by_name.get(one.tensor.name.partition(f".{MAGNITUDE}")[0] + ".base_layer.weight")
        if one.kind == MAGNITUDE and base is not None:
            rows = numpy_helper.to_array(base).astype(np.float32)
            lengths[one.name] = np.linalg.norm(rows, axis=1).astype(numpy_helper.to_array(one.tensor).dtype)
    return lengths


def _to_file(factors: Iterable[Factor], file: Path) -> None:
    """Makes the tensors read their bytes from a safetensors file, which holds them one behind the other."""
    from onnx import TensorProto

    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(header_size))
    for one in factors:
        begin, end = header[one.name]["data_offsets"]
        del one.tensor.float_data[:], one.tensor.int32_data[:]
        one.tensor.ClearField("raw_data")
        one.tensor.data_location = TensorProto.EXTERNAL
        place = {"location": file.name, "offset": str(8 + header_size + begin), "length": str(end - begin)}
        for key, value in place.items():
            entry = one.tensor.external_data.add()
            entry.key, entry.value = key, value


PASS = Pass(
    name="ExtractAdapters",
    summary="Takes the weights of a LoRA, DoRA or LoHa adapter out of a graph into a file of their own.",
    options=ExtractAdaptersOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx", "onnxruntime"),
)
