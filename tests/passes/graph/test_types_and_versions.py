"""Types of inputs and outputs, half precision, and versions of operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from runner.errors import InvalidRecipe, RunFailed
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.graph.float16 import OnnxFloatToFloat16Options
from runner.passes.graph.io_types import OnnxIODataTypeConverterOptions

GENERATOR = np.random.default_rng(3)
X = GENERATOR.standard_normal((2, 8)).astype(np.float32)


def save(text: str, folder: Path, opset: int = 21, **weights: Any) -> ModelHandle:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx")


def values(*shape: int, kind: Any = np.float32) -> Any:
    return (GENERATOR.standard_normal(shape) / 4).astype(kind)


def types(model: ModelHandle) -> list[str]:
    session = open_session(model, 1)
    return [value.type for value in (*session.get_inputs(), *session.get_outputs())]


def run(model: ModelHandle, x: Any = X) -> list[Any]:
    session = open_session(model, 1)
    kind = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    return [one.astype(np.float32) for one in session.run(None, {session.get_inputs()[0].name: x.astype(kind)})]


def same(one: ModelHandle, other: ModelHandle, atol: float = 1e-6) -> None:
    for a, b in zip(run(one), run(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.path).graph.node)


@pytest.fixture
def network(tmp_path: Path) -> ModelHandle:
    """Two layers and normalisation; the first layer's result goes out as well."""
    text = """g (float[a,8] x) => (float[a,16] logits, float[a,8] hidden) {
        [first] h = MatMul (x, w)
        hidden = Relu (h)
        n = LayerNormalization (hidden, scale)
        [head] logits = MatMul (n, v)
    }"""
    return save(text, tmp_path / "network", w=values(8, 8), v=values(8, 16), scale=np.ones(8, np.float32))


class TestInputAndOutputTypes:
    def test_logits_of_a_half_graph(self, network, apply_pass):
        half = apply_pass("OnnxFloatToFloat16", network)
        assert set(types(half)) == {"tensor(float16)"}
        made = apply_pass("OnnxIODataTypeConverter", half)
        assert types(made) == ["tensor(float16)", "tensor(float)", "tensor(float16)"]
        same(half, made, atol=1e-2)  # ONNX Runtime computes what goes into a Cast to fp32 in fp32

    @pytest.mark.parametrize("target", [10, "float16", 16, "bfloat16"])
    def test_everything(self, target, network, apply_pass):
        made = apply_pass("OnnxIODataTypeConverter", network, name_pattern=None, source_dtype="float32", target_dtype=target)
        wanted = "tensor(float16)" if target in (10, "float16") else "tensor(bfloat16)"
        assert set(types(made)) == {wanted}
        if wanted == "tensor(float16)":
            same(network, made, atol=1e-2)
        assert "hidden" in apply_pass.said[-1]

    def test_value_that_is_read_inside_as_well(self, network, apply_pass):
        made = apply_pass("OnnxIODataTypeConverter", network, name_pattern="^hidden$", source_dtype=1, target_dtype=11)
        assert types(made) == ["tensor(float)", "tensor(float)", "tensor(double)"]
        same(network, made)

    def test_input_that_goes_straight_out_and_into_a_branch(self, tmp_path, apply_pass):
        text = """g (float[a,8] x) => (float[a,8] y) {
            c = Constant <value = bool {1}> ()
            y = If (c) <
                then_branch = t () => (float[a,8] r) { r = Relu (x) },
                else_branch = e () => (float[a,8] r) { r = Neg (x) }
            >
        }"""
        model = save(text, tmp_path / "branches")
        made = apply_pass("OnnxIODataTypeConverter", model, name_pattern="", source_dtype=1, target_dtype=10)
        same(model, made, atol=1e-2)

    def test_nothing_of_that_name(self, network, apply_pass):
        same(network, apply_pass("OnnxIODataTypeConverter", network, name_pattern="nothing", source_dtype=1, target_dtype=10))
        assert "no input or output of that type" in apply_pass.said[-1]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"source_dtype": 99}, "no number of an element type"),
            ({"target_dtype": "flot"}, "did you mean 'float'"),
            ({"source_dtype": 1, "target_dtype": "float"}, "are the same"),
            ({"name_pattern": "(logits"}, "no regular expression"),
        ],
    )
    def test_options_that_make_no_sense(self, options, told):
        with pytest.raises(ValidationError, match=told):
            OnnxIODataTypeConverterOptions.model_validate(options)


class TestHalfPrecision:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"keep_io_types": True},
            {"op_block_list": ["LayerNormalization", "Range"]},
            {"op_include_list": ["MatMul"]},
            {"node_block_list": ["head"]},
            {"node_include_list": ["head"]},
            {"use_symbolic_shape_infer": False},
        ],
    )
    def test_valid_and_near(self, options, network, apply_pass):
        made = apply_pass("OnnxFloatToFloat16", network, **options)
        onnx.checker.check_model(made.path, full_check=True)
        same(network, made, atol=1e-2)

    def test_what_stays_in_fp32(self, network, apply_pass):
        made = apply_pass("OnnxFloatToFloat16", network, node_block_list=["head"])
        kinds = {tensor.name: tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
        assert (kinds["v"], kinds["w"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)

    def test_blocked_operators_of_an_exported_graph(self, exported_bert, apply_pass):
        made = apply_pass("OnnxFloatToFloat16", exported_bert, op_block_list=["LayerNormalization", "Range", "Gelu"])
        onnx.checker.check_model(made.path, full_check=True)
        assert operators(made)["Cast"] >= 2 * operators(made)["LayerNormalization"]
        open_session(made, 1)

    def test_half_graphs_of_a_folder_stay(self, network, apply_pass):
        half = apply_pass("OnnxFloatToFloat16", network)
        genai = ModelHandle("genai", half.folder, half.file)
        again = apply_pass("OnnxFloatToFloat16", genai)
        assert again.kind == "genai"
        assert "in half precision already" in apply_pass.said[-1]

    def test_branches_whose_weights_share_a_name(self, tmp_path, apply_pass):
        text = """g (float[a,8] x) => (float[a,8] y) {
            c = Constant <value = bool {1}> ()
            y = If (c) <
                then_branch = t () => (float[a,8] r) { r = Mul (x, w) },
                else_branch = e () => (float[a,8] r) { r = Add (x, w) }
            >
        }"""
        model = save(text, tmp_path / "branches")
        whole = onnx.load(model.path)
        for attribute in whole.graph.node[1].attribute:
            attribute.g.initializer.append(numpy_helper.from_array(values(8), "w"))
        onnx.save(whole, model.path)
        with pytest.raises(RunFailed, match="DeduplicateSubgraphInitializers"):
            apply_pass("OnnxFloatToFloat16", model)

    def test_lists_that_contradict(self):
        with pytest.raises(ValidationError, match="either op_block_list or op_include_list"):
            OnnxFloatToFloat16Options.model_validate({"op_block_list": ["Add"], "op_include_list": ["MatMul"]})


class TestMixedPrecision:
    def test_head_trained_in_fp32_stays(self, network, apply_pass):
        made = apply_pass("OrtMixedPrecision", network)
        assert types(made) == ["tensor(float16)", "tensor(float)", "tensor(float16)"]
        assert "logits and the product before it stay" in apply_pass.said[-1]
        same(network, made, atol=1e-2)

    def test_head_trained_in_half_precision_does_not(self, tmp_path, apply_pass):
        text = "g (float[a,8] x) => (float[a,16] logits) { h = MatMul (x, v) \n logits = Add (h, b) }"
        halves = values(8, 16, kind=np.float16).astype(np.float32)
        model = save(text, tmp_path / "half", v=halves, b=values(16))
        made = apply_pass("OrtMixedPrecision", model, op_block_list=["Relu"])
        assert types(made) == ["tensor(float16)", "tensor(float16)"]
        assert operators(made)["Cast"] == 0
        same(model, made, atol=1e-2)

    def test_no_product_before_the_output(self, tmp_path, apply_pass):
        model = save(
            "g (float[a,8] x) => (float[a,8] y) { h = MatMul (x, w) \n y = Softmax (h) }", tmp_path / "s", w=values(8, 8)
        )
        same(model, apply_pass("OrtMixedPrecision", model), atol=1e-2)


class TestVersions:
    def test_newer(self, tmp_path, apply_pass):
        model = save("g (float[a,8] x) => (float[a,8] y) { y = Softmax (x) }", tmp_path / "old", opset=13)
        for given, wanted in (({"target_opset": 21}, 21), ({}, onnx.defs.onnx_opset_version())):
            made = apply_pass("OnnxOpVersionConversion", model, **given)
            assert onnx.load(made.path).opset_import[0].version == wanted
            same(model, made)

    def test_older_where_the_operators_exist(self, network, apply_pass):
        made = apply_pass("OnnxOpVersionConversion", network, target_opset=18)
        assert onnx.load(made.path).opset_import[0].version == 18
        same(network, made)

    def test_operators_that_an_older_version_lacks(self, network, apply_pass):
        with pytest.raises(InvalidRecipe, match="opset 13 has no LayerNormalization"):
            apply_pass("OnnxOpVersionConversion", network, target_opset=13)

    def test_version_that_does_not_exist(self, network, apply_pass):
        with pytest.raises(InvalidRecipe, match="opset 999 does not exist"):
            apply_pass("OnnxOpVersionConversion", network, target_opset=999)
