"""Attention taken apart computes what it did, and holds no scores of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from runner.passes.graph.multi_head_attention import take_attention_apart

WIDTH, HEADS = 16, 4


def attention(*, biased: bool, **attributes: Any) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weight = random.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32)
    bias = random.standard_normal(3 * WIDTH).astype(np.float32) * biased
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], name="attention", domain="com.microsoft", num_heads=HEADS)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    shape = ["batch", "tokens", WIDTH]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.random.default_rng(1).standard_normal((2, 9, WIDTH)).astype(np.float32)
    found: np.ndarray[Any, Any] = session.run(None, {"x": given})[0]
    return found


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}])
def test_the_parts_compute_the_same(biased: bool, attributes: dict[str, float]) -> None:
    model = OnnxModel(attention(biased=biased, **attributes))
    expected = run(model.model)
    assert take_attention_apart(model) == 1
    assert [node.op_type for node in model.model.graph.node] == ["MatMul"] * 3 + ["MultiHeadAttention"]
    assert ("attention_bias" in {one.name for one in model.model.graph.initializer}) == biased
    assert sum(numpy_helper.to_array(one).ndim == 2 for one in model.model.graph.initializer) == 3
    assert np.allclose(run(model.model), expected, atol=1e-5)


def test_attention_that_looks_back_only_is_left_alone() -> None:
    model = OnnxModel(attention(biased=True, unidirectional=1))
    assert take_attention_apart(model) == 0
    assert [node.op_type for node in model.model.graph.node] == ["Attention"]
