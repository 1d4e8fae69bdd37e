"""ONNX Runtime's Python optimiser on graphs of gigabytes.

It infers shapes a dozen times, each time on copies of the whole model, and beyond 2 GB not at all, so that fusions that need
shapes are left out; here graphs lend it their structure alone. Its rounding to half precision looks for the numbers to limit in
a dozen passes over each weight, of which one is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from onnxruntime.transformers.onnx_model import OnnxModel

_SMALL = 64  # numbers of a tensor that may be a shape or axes
_CHUNK = 1 << 20  # numbers that are rounded at once, which stay in the processor's caches
_INFINITE, _MAGNITUDE = 0x7C00, 0x7FFF  # bits of half precision


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of a graph without the values of its larger weights, which types and shapes do not depend on."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif all(value.name != tensor.name for value in graph.input):
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


class _OfStructure:
    """What an optimiser of onnxruntime.transformers does in another way, with the same result.

    Shapes come from the structure of its graph, and who reads what is found once a search, not once a step of it.
    """

    model: onnx.ModelProto

    def infer_runtime_shape(self, *arguments: Any, **named: Any) -> Any:
        whole = self.model
        self.model = without_weights(whole)
        try:
            return super().infer_runtime_shape(*arguments, **named)  # type: ignore[misc]
        finally:
            self.model = whole

    def find_first_child_by_type(self, node: Any, kind: str, readers: Any = None, recursive: bool = True) -> Any:
        known = readers or self.input_name_to_nodes()  # type: ignore[attr-defined]
        return super().find_first_child_by_type(node, kind, known, recursive)  # type: ignore[misc]


@contextmanager
def optimiser_of_structure(kind: str) -> Iterator[None]:
    """Lets onnxruntime.transformers optimise models of a kind by their structure within the block."""
    from onnxruntime.transformers import optimizer

    known = optimizer.MODEL_TYPES[kind]
    own, *others = known
    # The module of the fusions is looked up by its own.
    made = type(own.__name__, (_OfStructure, own), {"__module__": own.__module__})
    optimizer.MODEL_TYPES[kind] = (made, *others)
    try:
        yield
    finally:
        optimizer.MODEL_TYPES[kind] = known


def halve(model: OnnxModel, *, infer_types: bool = True, **arguments: Any) -> None:
    """Converts a graph to half precision as ONNX Runtime does.

    Args:
        model: an optimiser's model, changed in place.
        infer_types: of values for which none is stated, from the structure of the graph.
        arguments: of onnxruntime.transformers.float16.convert_float_to_float16, besides its inference of shapes.
    """
    from onnxruntime.transformers import float16

    if infer_types:
        _state_inferred_types(model.model)
    with _rounded_at_once():
        model.initialize(float16.convert_float_to_float16(model.model, disable_shape_infer=True, **arguments))
    model.remove_cascaded_cast_nodes()
    model.remove_useless_cast_nodes()


def _state_inferred_types(model: onnx.ModelProto) -> None:
    """States the types that ONNX Runtime's inference finds, which knows fused operators, where none are stated."""
    from onnxruntime.transformers.shape_infer_helper import SymbolicShapeInferenceHelper

    light, found = without_weights(model), None
    with suppress(Exception):  # it gives up by whatever it meets, and the types that are stated have to do then
        found = SymbolicShapeInferenceHelper(light).infer_shapes(light, auto_merge=True, guess_output_rank=False)
    known = {one.name for one in model.graph.value_info}
    for one in found.graph.value_info if found is not None else ():
        if one.name and one.name not in known and one.type.tensor_type.elem_type:
            added = model.graph.value_info.add()
            added.CopyFrom(one)
            added.type.tensor_type.ClearField("shape")


@contextmanager
def _rounded_at_once() -> Iterator[None]:
    import numpy as np
    from onnxruntime.transformers import float16

    by_passes = float16.convert_np_to_float16

    def rounded(array: NDArray[Any], smallest: float = 5.96e-08, largest: float = 65504.0) -> NDArray[np.float16]:
        if array.dtype != np.float32 or array.ndim != 1 or (smallest, largest) != (5.96e-08, 65504.0):
            found: NDArray[np.float16] = by_passes(array, smallest, largest)
            return found
        return round_to_half(array)

    float16.convert_np_to_float16 = rounded
    try:
        yield
    finally:
        float16.convert_np_to_float16 = by_passes


def round_to_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """Returns a row of numbers in half precision; finite ones stay finite, and none but 0 becomes 0."""
    import numpy as np

    made = np.empty(array.size, np.float16)
    for begin in range(0, array.size, _CHUNK):
        given, half = array[begin : begin + _CHUNK], made[begin : begin + _CHUNK]
        with np.errstate(over="ignore"):
            half[:] = given
        magnitude = half.view(np.uint16) & _MAGNITUDE
        if (magnitude == 0).any():
            lost = (magnitude == 0) & (given != 0)
            half[lost] = np.copysign(np.float16(5.96e-08), given[lost].astype(np.float16))
        if (magnitude == _INFINITE).any():
            beyond = (magnitude == _INFINITE) & np.isfinite(given)
            half[beyond] = np.copysign(np.float16(65504.0), half[beyond])
    return made
