"""MatMulNBits as standard operators: the same numbers, and what is left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from runner.errors import InvalidRecipe
from runner.models.handle import ModelHandle
from runner.passes.graph.scopes import graphs_below

GENERATOR = np.random.default_rng(2)
X = GENERATOR.standard_normal((3, 50)).astype(np.float32)


@pytest.fixture
def product(tmp_path: Path) -> ModelHandle:
    """A product by itself and one in both branches of an If, of opset 17."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[a,50] x) => (float[a,30] y) {
        [product] h = MatMul (x, w)
        y = If (c) <
            then_branch = t () => (float[a,30] r) { r = MatMul (h, v) },
            else_branch = e () => (float[a,30] r) { r = Relu (h) }
        >
    }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w", (50, 40)), ("v", (40, 30))):
        model.graph.initializer.append(numpy_helper.from_array(GENERATOR.standard_normal(shape).astype(np.float32), name))
    model.graph.node[1].attribute[1].g.node[0].CopyFrom(onnx.helper.make_node("MatMul", ["h", "v"], ["r"]))
    (tmp_path / "product").mkdir()
    onnx.save(model, tmp_path / "product" / "model.onnx")
    return ModelHandle("onnx", tmp_path / "product", "model.onnx")


def run(model: ModelHandle, taken: bool) -> Any:
    """Runs a graph as it is written: on loading, ONNX Runtime would make a MatMulNBits of the operators again."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.path, options).run(None, {"c": np.array(taken), "x": X})[0]


def nodes(model: ModelHandle) -> list[onnx.NodeProto]:
    return [node for one in graphs_below(onnx.load(model.path).graph) for node in one.node]


def types(model: ModelHandle) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(model.path).graph.initializer} - {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("scheme", [(4, 16, True), (4, 32, False), (8, 64, True), (8, 16, False), (2, 16, False)])
@pytest.mark.parametrize("options", [{}, {"use_transpose_op": True}, {"use_signed_int": True}, {"add_zero_point": True}])
def test_gives_the_same_numbers(scheme, options, product, apply_pass):
    bits, size, symmetric = scheme
    quantized = apply_pass(
        "OnnxBlockWiseRtnQuantization", product, bits=bits, block_size=size, is_symmetric=symmetric, accuracy_level=1
    )
    made = apply_pass("MatMulNBitsToQDQ", quantized, **options)
    onnx.checker.check_model(made.path, full_check=True)
    found = Counter(node.op_type for node in nodes(made))
    assert (found["MatMulNBits"], found["DequantizeLinear"], found["MatMul"]) == (0, 3, 3)
    assert found["Transpose"] == (3 if options.get("use_transpose_op") else 0)
    for taken in (True, False):
        np.testing.assert_allclose(run(made, taken), run(quantized, taken), atol=1e-4)


def test_types_and_zero_points(product, apply_pass):
    quantized = apply_pass("OnnxBlockWiseRtnQuantization", product, block_size=16)
    kinds = onnx.TensorProto
    assert types(apply_pass("MatMulNBitsToQDQ", quantized)) == {kinds.UINT4}
    signed = apply_pass("MatMulNBitsToQDQ", quantized, use_int4=True)
    assert types(signed) == {kinds.INT4}
    assert {len(node.input) for node in nodes(signed) if node.op_type == "DequantizeLinear"} == {2}
    padded = apply_pass("MatMulNBitsToQDQ", quantized, use_int4=True, add_zero_point=True)
    assert {len(node.input) for node in nodes(padded) if node.op_type == "DequantizeLinear"} == {3}
    wide = apply_pass("OnnxBlockWiseRtnQuantization", product, bits=8)
    assert types(apply_pass("MatMulNBitsToQDQ", wide, use_int4=True)) == {kinds.UINT8}
    assert types(apply_pass("MatMulNBitsToQDQ", wide, use_signed_int=True)) == {kinds.INT8}


def test_nodes_left_out(product, apply_pass):
    quantized = apply_pass("OnnxBlockWiseRtnQuantization", product)
    made = apply_pass("MatMulNBitsToQDQ", quantized, nodes_to_exclude=["product_Q4"])
    assert Counter(node.op_type for node in nodes(made))["MatMulNBits"] == 1
    assert "2 MatMulNBits became DequantizeLinear and MatMul; 1 left alone" in apply_pass.said[-1]
    with pytest.raises(InvalidRecipe, match="did you mean 'product_Q4'"):
        apply_pass("MatMulNBitsToQDQ", quantized, nodes_to_exclude=["product"])


def test_zero_points_between_codes_stay(tmp_path, apply_pass):
    codes = GENERATOR.integers(0, 255, (8, 2, 8)).astype(np.uint8)
    parts = {"b": codes, "s": np.ones((8, 2), np.float32), "z": np.full((8, 2), 7.5, np.float32)}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "b", "s", "z"], ["y"], domain="com.microsoft", K=32, N=8, bits=4, block_size=16
    )
    values = [onnx.helper.make_tensor_value_info(name, 1, ["a", width]) for name, width in (("x", 32), ("y", 8))]
    graph = onnx.helper.make_graph(
        [node], "g", values[:1], values[1:], [numpy_helper.from_array(value, name) for name, value in parts.items()]
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    made = apply_pass("MatMulNBitsToQDQ", ModelHandle("onnx", tmp_path, "model.onnx", files=("model.onnx",)))
    assert [node.op_type for node in nodes(made)] == ["MatMulNBits"]
