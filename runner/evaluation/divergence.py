"""Where the numbers of two models part: outputs by how much they differ, and the first tensors inside a graph that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.models.handle import ModelHandle
from runner.models.session import raised_by_runtime

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

# Relative error that a precision explains: the norm of the difference over the norm of what was expected.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.25, "int4": 0.5}
_SHOWN = 8
_RESEMBLANCE = 0.5  # cosine below which a tensor of another name is another tensor
_QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
     "QLinearConv", "DynamicQuantizeMatMul", "QAttention", "QGemm"}
)  # fmt: skip
_BLOCK_OPS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")


@dataclass(frozen=True)
class Difference:
    """How far a tensor lies from what it should be.

    Attributes:
        name: the tensor's name.
        relative_error: norm of the difference over the norm of what was expected; infinite where values are not finite.
        cosine: between both, as vectors.
        max_abs_diff: greatest difference of one element.
        shape: its shape.
        node: operator that gives it, for a tensor inside a graph.
        matched: what it was compared with, for a tensor inside a graph: the one of its name, or the nearest of its shape.
    """

    name: str
    relative_error: float
    cosine: float
    max_abs_diff: float
    shape: tuple[int, ...]
    node: str | None = None
    matched: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the difference as plain data."""
        return {**asdict(self), "shape": list(self.shape)}


def difference(
    name: str, found: NDArray[Any], expected: NDArray[Any], node: str | None = None, matched: str | None = None
) -> Difference:
    """Returns how far `found` lies from `expected`, both of the same number of elements."""
    import numpy as np

    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    shape = tuple(found.shape)
    if not np.isfinite(one).all():
        return Difference(name, float("inf"), 0.0, float("inf"), shape, node, matched)
    apart, size = float(np.linalg.norm(one - other)), float(np.linalg.norm(other))
    lengths = float(np.linalg.norm(one)) * size
    relative = apart / size if size else 0.0 if not apart else float("inf")
    cosine = float(one @ other) / lengths if lengths else float(not apart)
    return Difference(name, relative, cosine, float(np.abs(one - other).max(initial=0.0)), shape, node, matched)


def output_differences(inputs: Arrays, expected: Arrays, found: Arrays) -> list[Difference]:
    """Returns the differences of the outputs that both models give, the greatest first; padding is left out.

    Raises:
        NoProbe: neither names nor shapes of the outputs are the same.
        RunFailed: an output has another shape.
    """
    from runner.evaluation.parity import comparable, output_pairs

    made = []
    for name, other in output_pairs(dict(found), dict(expected)).items():
        one, source = found[name], expected[other]
        try:
            one, source = comparable(name, one, source, inputs.get("attention_mask"))
        except RunFailed as error:
            if error.problems[0].rule != "output-not-finite":
                raise
        made.append(difference(name, one, source))
    return sorted(made, key=lambda one: -one.relative_error)


def graph_of(model: ModelHandle) -> ModelHandle | None:
    """Returns the model as a single ONNX graph, a language model's decoder for one; None where it is none."""
    from runner.models.files import graphs_of

    if model.kind == "onnx":
        return model
    if model.kind != "genai":
        return None
    names = graphs_of(model)
    name = next((name for name in names if "decoder" in name), names[0] if names else None)
    return ModelHandle("onnx", model.folder, name, model.task, model.attributes) if name else None


def precision_of(model: ModelHandle) -> str:
    """Returns the narrowest numbers that the model computes with: ``fp32``, ``fp16``, ``int8`` or ``int4``."""
    from runner.models.files import read_graph
    from runner.models.quantized_checkpoint import quantization_of

    graph = graph_of(model)
    if graph is None:
        quantized = quantization_of(model.folder) if model.kind == "hf" else None
        return "fp32" if not quantized else "int8" if int(_bits(quantized)) > 4 else "int4"
    return _graph_precision(read_graph(graph.path, weights=False).graph)


def _bits(quantized: Any) -> Any:
    return quantized.get("bits", 4) if isinstance(quantized, Mapping) else getattr(quantized, "bits", 4)


def _graph_precision(graph: onnx.GraphProto) -> str:
    from onnx import TensorProto

    bits = [
        next((attribute.i for attribute in node.attribute if attribute.name in ("bits", "expert_weight_bits")), 4)
        for node in graph.node
        if node.op_type in _BLOCK_OPS
    ]
    types = {tensor.data_type for tensor in graph.initializer}
    if any(one <= 4 for one in bits) or types & {TensorProto.INT4, TensorProto.UINT4}:
        return "int4"
    if bits or any(node.op_type in _QUANTIZED_OPS for node in graph.node):
        return "int8"
    return "fp16" if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16} else "fp32"


def first_differing(
    before: ModelHandle, after: ModelHandle, inputs: Arrays, tolerance: float, threads: int
) -> tuple[Difference, ...]:
    """Returns the first tensors inside a graph that differ from those of the graph that it was made of.

    Tensors are compared with those of their name and shape. One without a namesake is compared with the nearest of its shape
    in the graph before, and left out where none resembles it.

    Args:
        before: graph of the step before.
        after: graph in question.
        inputs: what both are run on.
        tolerance: relative error from which a tensor differs.
        threads: threads to compute with.

    Returns:
        Up to eight, in the order in which the graph computes them.

    Raises:
        RunFailed: a graph does not run with its inner tensors as outputs.
    """
    known = _inner_tensors(before, inputs, threads)
    made = _inner_tensors(after, inputs, threads)
    found: list[Difference] = []
    for name, (node, array) in made.items():
        one = _nearest(name, node, array, known)
        if one is not None and one.relative_error > tolerance:
            found.append(one)
        if len(found) == _SHOWN:
            break
    return tuple(found)


def _nearest(name: str, node: str, array: NDArray[Any], known: Mapping[str, tuple[str, NDArray[Any]]]) -> Difference | None:
    """Returns the difference from the namesake, or from the nearest tensor of the shape; None where nothing resembles it."""
    namesake = known.get(name)
    if namesake is not None and namesake[1].shape == array.shape:
        return difference(name, array, namesake[1], node, name)
    alike = [(other, values) for other, (_, values) in known.items() if values.shape == array.shape]
    compared = [difference(name, array, values, node, other) for other, values in alike]
    nearest = min(compared, key=lambda one: one.relative_error, default=None)
    alike_enough = nearest is not None and (nearest.cosine >= _RESEMBLANCE or nearest.relative_error == float("inf"))
    return nearest if alike_enough else None


def _inner_tensors(model: ModelHandle, inputs: Arrays, threads: int) -> dict[str, tuple[str, NDArray[Any]]]:
    """Returns, in the order of computation, every tensor of floats that depends on the inputs, with its operator."""
    import numpy as np
    import onnxruntime

    from runner.data.model_feed import Feed
    from runner.models.files import read_graph

    graph = read_graph(model.path, weights=False)
    nodes = _computed(graph.graph)
    own = {one.name for one in graph.graph.output}
    graph.graph.output.extend(_untyped(name) for name in nodes if name not in own)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        floats = [one.name for one in session.get_outputs() if one.type in _FLOATS and one.name in nodes]
        values = session.run(floats, Feed.of(model).fitted(inputs))
    except Exception as error:
        if not raised_by_runtime(error):
            raise
        told = str(error).strip().splitlines()[0]
        raise RunFailed("inner-tensors", f"{model.path.name} does not run with its inner tensors as outputs: {told}") from error
    arrays = dict(zip(floats, values, strict=True))
    return {name: (node, np.asarray(arrays[name], np.float32)) for name, node in nodes.items() if name in arrays}


def _computed(graph: onnx.GraphProto) -> dict[str, str]:
    """Returns tensor to operator, without what nodes make of weights alone."""
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    found = {}
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and fixed.issuperset(node.input) and not _has_body(node)):
            fixed.update(node.output)
        else:
            found.update(dict.fromkeys(filter(None, node.output), node.op_type))
    return found


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") for attribute in node.attribute)


_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")


def _untyped(name: str) -> onnx.ValueInfoProto:
    import onnx

    return onnx.ValueInfoProto(name=name)


def worst(differences: Sequence[Difference]) -> float:
    """Returns the greatest relative error; zero where nothing was compared."""
    return max((one.relative_error for one in differences), default=0.0)
