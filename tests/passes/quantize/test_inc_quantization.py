"""neural-compressor's recipes, done without it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from runner.errors import DataUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.quantize.inc_dynamic import IncDynamicQuantizationOptions
from runner.passes.quantize.inc_quantization import IncQuantizationOptions

GENERATOR = np.random.default_rng(4)
# Inputs that use a few directions only, as activations do: there GPTQ can put its errors elsewhere.
INPUTS = [(GENERATOR.standard_normal((32, 6)) @ GENERATOR.standard_normal((6, 64))).astype(np.float32) for _ in range(4)]
DATA = [{"x": batch} for batch in INPUTS]


@pytest.fixture
def layers(tmp_path: Path) -> ModelHandle:
    """Two layers."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[a,64] x) => (float[a,32] y) {
        s = Identity (x)
        [first] h = MatMul (s, w)
        r = Relu (h)
        [second] y = Gemm <transB = 1> (r, v, b)
    }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w", (64, 96)), ("v", (32, 96)), ("b", (32,))):
        model.graph.initializer.append(numpy_helper.from_array((GENERATOR.standard_normal(shape) / 8).astype(np.float32), name))
    (tmp_path / "layers").mkdir()
    onnx.save(model, tmp_path / "layers" / "model.onnx")
    return ModelHandle("onnx", tmp_path / "layers", "model.onnx")


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.path).graph.node)


def error(model: ModelHandle, other: ModelHandle) -> float:
    found = [(open_session(one, 1).run(None, {"x": INPUTS[-1]})[0]) for one in (model, other)]
    return float(np.square(found[0] - found[1]).mean() / np.square(found[0]).mean())


class TestWeightsOnly:
    def test_gptq_beats_rounding(self, layers, apply_pass):
        def made(algorithm: str, **data: Any) -> ModelHandle:
            config = {"bits": 4, "algorithm": algorithm, "group_size": 32}
            return apply_pass("IncStaticQuantization", layers, approach="weight_only", weight_only_config=config, **data)

        rounded, solved = made("rtn", data_config="c"), made("gptq", data_config="c", data=DATA)
        assert operators(solved)["MatMulNBits"] == operators(rounded)["MatMulNBits"] == 2
        assert error(layers, solved) < 0.5 * error(layers, rounded)
        assert "GPTQ, in place of neural-compressor" in "".join(apply_pass.said)

    @pytest.mark.parametrize("config", [{}, {"scheme": "sym"}, {"group_size": -1, "bits": 8}, {"bits": 8}])
    def test_rounding_needs_no_data(self, config, layers, apply_pass):
        made = apply_pass("IncQuantization", layers, approach="weight_only", weight_only_config=config)
        assert error(layers, made) < 0.02

    def test_gptq_without_a_batch(self, layers, apply_pass):
        config = {"algorithm": "GPTQ"}
        with pytest.raises(DataUnavailable, match="not one batch"):
            apply_pass("IncQuantization", layers, approach="weight_only", weight_only_config=config, data_config="c", data=[])
        genai = ModelHandle("genai", layers.folder, layers.file)
        with pytest.raises(RunFailed, match="inputs of one graph"):
            apply_pass("IncQuantization", genai, approach="weight_only", weight_only_config=config, data_config="c")


class TestEightBits:
    def test_static(self, layers, apply_pass):
        made = apply_pass("IncStaticQuantization", layers, data_config="c", data=DATA, quant_format="QDQ")
        assert operators(made)["QuantizeLinear"] > 0
        assert error(layers, made) < 0.01

    def test_so_many_examples(self, layers, apply_pass):
        apply_pass("IncQuantization", layers, data_config="c", data=DATA, calibration_sampling_size=[40])
        assert "calibrating on 2 batches" in apply_pass.said

    def test_dynamic(self, layers, apply_pass):
        made = apply_pass("IncDynamicQuantization", layers)
        assert operators(made)["MatMulInteger"] == 2
        assert error(layers, made) < 0.01


class TestOptions:
    def test_data_is_asked_for_early(self):
        for given in ({}, {"approach": "weight_only", "weight_only_config": {"algorithm": "GPTQ"}}):
            with pytest.raises(ValidationError, match="data_config is missing"):
                IncQuantizationOptions.model_validate(given)
        IncDynamicQuantizationOptions.model_validate({})

    @pytest.mark.parametrize("wrong", [{"group_size": 24}, {"algorithm": "AWQ"}, {"bits": 5}, {"schema": "sym"}])
    def test_what_no_kernel_serves(self, wrong):
        with pytest.raises(ValidationError):
            IncQuantizationOptions.model_validate({"approach": "weight_only", "weight_only_config": wrong})
