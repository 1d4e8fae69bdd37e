"""What goes before quantisation: shapes and folded constants, and which tensors get 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from runner.errors import InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.quantize.mixed_precision_overrides import MixedPrecisionOverridesOptions
from runner.passes.quantize.options import CalibrationOptions, StaticOptions

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)


def save(text: str, folder: Path, **weights: tuple[int, ...]) -> ModelHandle:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    generator = np.random.default_rng(1)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx")


@pytest.fixture
def sums(tmp_path) -> ModelHandle:
    """Two sums with one weight; behind them a product."""
    text = """g (float[a,8] x) => (float[a,8] y) {
        p = Add (x, w)
        q = Relu (p)
        r = Mul (q, w)
        [product] y = MatMul (r, v)
    }"""
    return save(text, tmp_path / "sums", w=(8,), v=(8, 8))


class TestPreprocess:
    @pytest.mark.parametrize(
        "options", [{}, {"skip_symbolic_shape": True}, {"skip_optimization": True, "skip_onnx_shape": True}]
    )
    def test_same_numbers_with_shapes(self, options, tmp_path, apply_pass):
        text = """g (float[a,8] x) => (float[a,8] y) {
            one = Constant <value = float {1.0}> ()
            two = Add (one, one)
            p = Mul (x, two)
            y = MatMul (p, v)
        }"""
        model = save(text, tmp_path / "constants", v=(8, 8))
        made = apply_pass("OnnxQuantizationPreprocess", model, **options)
        graph = onnx.load(made.path).graph
        assert {value.name for value in graph.value_info} >= {"p"}
        assert len(graph.node) == (4 if options.get("skip_optimization") else 2)
        for one, other in zip(*(open_session(each, 1).run(None, {"x": X}) for each in (model, made)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_operators_that_symbolic_inference_does_not_know(self, exported_bert, apply_pass):
        made = apply_pass("OnnxQuantizationPreprocess", exported_bert)
        assert any("no symbolic shapes" in line for line in apply_pass.said)
        open_session(made, 1)


class TestMixedPrecisionOverrides:
    def test_weights_of_wide_activations(self, sums, apply_pass):
        made = apply_pass("MixedPrecisionOverrides", sums, overrides_config={"p": "QUInt16", "q": "QUInt8"})
        assert made.attributes["mixed_precision_overrides"] == {
            "p": [{"quant_type": "QUInt16"}],
            "w_MixedPrecision_copy": [{"quant_type": "QUInt16"}],
        }
        graph = onnx.load(made.path).graph
        assert list(graph.node[0].input) == ["x", "w_MixedPrecision_copy"]
        assert list(graph.node[2].input) == ["q", "w"]

    def test_static_quantisation_heeds_them(self, sums, apply_pass):
        made = apply_pass("MixedPrecisionOverrides", sums, overrides_config={"p": "QUInt16", "q": "QUInt16", "r": "QUInt16"})
        assert "w" in made.attributes["mixed_precision_overrides"]
        quantized = apply_pass(
            "OnnxStaticQuantization", made, data_config="c", data=[{"x": X}], extra_options={"UseQDQContribOps": True}
        )
        kinds = {tensor.name: tensor.data_type for tensor in onnx.load(quantized.path).graph.initializer}
        assert kinds["r_zero_point"] == kinds["w_zero_point"] == onnx.TensorProto.UINT16
        assert kinds["x_zero_point"] == onnx.TensorProto.UINT8
        open_session(quantized, 1)

    def test_from_a_file(self, sums, tmp_path, apply_pass):
        path = tmp_path / "types.json"
        path.write_text('{"p": "QUInt16"}')
        made = apply_pass("MixedPrecisionOverrides", sums, overrides_config=str(path))
        assert "p" in made.attributes["mixed_precision_overrides"]
        path.write_text("no json")
        with pytest.raises(InvalidRecipe, match="cannot be read"):
            apply_pass("MixedPrecisionOverrides", sums, overrides_config=str(path))

    def test_wrong_names(self, sums, apply_pass):
        with pytest.raises(InvalidRecipe, match="no tensor 'pp'"):
            apply_pass("MixedPrecisionOverrides", sums, overrides_config={"pp": "QUInt16"})
        with pytest.raises(ValidationError, match="did you mean 'QUInt16'"):
            MixedPrecisionOverridesOptions.model_validate({"overrides_config": {"p": "QUint61"}})


class TestOptionsOfStaticQuantization:
    def test_single_tensors_and_ranges(self):
        made = StaticOptions.model_validate(
            {"data_config": "c", "tensor_quant_overrides": {"p": [{"quant_type": "uint16"}]}, "min_real_range": 0.001}
        )
        assert made.tensor_quant_overrides == {"p": [{"quant_type": "QUInt16"}]}
        assert made.extra() == {"MinimumRealRange": 0.001}
        with pytest.raises(ValidationError, match="no quant_type"):
            StaticOptions.model_validate({"data_config": "c", "tensor_quant_overrides": {"p": [{"quant_type": "int3"}]}})

    def test_older_names(self):
        assert CalibrationOptions.renamed["activation_symmetric"] == "ActivationSymmetric"
        assert CalibrationOptions.renamed["calibration_data_config"] == "data_config"
        assert "optimize_model" in CalibrationOptions.retired

    def test_single_tensor_by_option(self, sums, apply_pass):
        made = apply_pass(
            "OnnxStaticQuantization", sums, data_config="c", data=[{"x": X}],
            tensor_quant_overrides={"r": [{"quant_type": "uint16"}]}, extra_options={"UseQDQContribOps": True},
        )  # fmt: skip
        kinds = {tensor.name: tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
        assert kinds["r_zero_point"] == onnx.TensorProto.UINT16
