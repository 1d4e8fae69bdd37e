"""The optimiser of ONNX Runtime by the structure of a graph, and its rounding in one pass."""

from __future__ import annotations

import numpy as np
import onnx
from onnxruntime.transformers import float16, optimizer
from onnxruntime.transformers.onnx_model import OnnxModel

from runner.models.handle import ModelHandle
from runner.passes.graph.large_graphs import halve, optimiser_of_structure, round_to_half


def test_numbers_are_rounded_as_by_onnx_runtime_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        65504,
        65519,
        65520,
        -65520,
        1e38,
        -1e38,
        2.98e-8,
        2.9802322e-8,
        5.96e-8,
        1e-45,
    ]
    spread = 10.0 ** random.uniform(-12, 8, 100_000) * random.choice([-1, 1], 100_000)
    numbers = np.concatenate([random.standard_normal(1_200_000), spread, edges]).astype(np.float32)
    expected = float16.convert_np_to_float16(numbers)
    np.testing.assert_array_equal(round_to_half(numbers).view(np.uint16), expected.view(np.uint16))


def test_shapes_come_from_the_structure_of_a_graph(traced_bert: ModelHandle) -> None:
    model = onnx.load(traced_bert.folder / traced_bert.file)
    before = model.SerializeToString(deterministic=True)
    known = dict(optimizer.MODEL_TYPES)
    with optimiser_of_structure("bert"):
        optimiser = optimizer.MODEL_TYPES["bert"][0](model)
        shapes = optimiser.infer_runtime_shape(update=True)
    assert known == optimizer.MODEL_TYPES
    assert optimiser.model.SerializeToString(deterministic=True) == before
    assert max(np.prod(one.dims) for one in model.graph.initializer) > 64
    assert all(np.prod(one.dims) <= 64 for one in shapes.out_mp_.graph.initializer)
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    assert len(shapes.get_edge_shape(product.output[0])) == 3


def test_a_graph_in_half_precision_is_that_of_onnx_runtime(traced_bert: ModelHandle) -> None:
    by_us, by_them = (OnnxModel(onnx.load(traced_bert.folder / traced_bert.file)) for _ in range(2))
    halve(by_us, keep_io_types=True)
    by_them.convert_float_to_float16(keep_io_types=True)
    assert by_us.model.graph.node == by_them.model.graph.node
    assert by_us.model.graph.initializer == by_them.model.graph.initializer


def test_the_converter_is_left_as_it_was(traced_bert: ModelHandle) -> None:
    before = float16.convert_np_to_float16
    halve(OnnxModel(onnx.load(traced_bert.folder / traced_bert.file)), keep_io_types=True)
    assert float16.convert_np_to_float16 is before
