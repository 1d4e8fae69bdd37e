"""Quantised models run, are small, and stay near what they were."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from runner.data.batches import Batches, open_data
from runner.errors import DataUnavailable, InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.quantize.dynamic_quantization import OnnxDynamicQuantizationOptions
from runner.passes.quantize.options import StaticOptions
from runner.passes.quantize.quantization import OnnxQuantizationOptions
from runner.recipe.config import DataConfig


def batches(model: ModelHandle, folder: Path) -> Batches:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "over", "the", "hill", "with"]
    lines = [" ".join(words[start : start + 6]) for start in range(8)]
    (folder / "sentences.txt").write_text("\n".join(lines))
    config = DataConfig.model_validate(
        {
            "name": "calibration",
            "load_dataset_config": {"type": "sentences", "path": "sentences.txt"},
            "dataloader_config": {"batch_size": 3},
        }
    )
    return open_data(config, folder=folder, model=model, smoke=False, script_allowed=False)


def cosine(model: ModelHandle, other: ModelHandle, inputs: list[dict[str, np.ndarray]]) -> float:
    one, two = open_session(model, 1), open_session(other, 1)
    found = []
    for batch in inputs:
        a, b = (session.run(None, batch)[0].reshape(len(next(iter(batch.values()))), -1) for session in (one, two))
        found.append((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return float(np.concatenate(found).mean())


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.path).graph.node)


class TestDynamic:
    @pytest.mark.parametrize("fixture", ["exported_bert", "traced_bert"])
    @pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"weight_type": "uint8"}, {"reduce_range": True}])
    def test_runs_near_the_original(self, fixture, request, apply_pass, tmp_path, options):
        model = request.getfixturevalue(fixture)
        made = apply_pass("OnnxDynamicQuantization", model, **options)
        assert operators(made)["MatMulInteger"] == 12
        assert made.path.stat().st_size < 0.8 * model.path.stat().st_size
        assert cosine(model, made, list(batches(model, tmp_path))) > 0.99
        assert made.attributes["precision"] in ("int8", "uint8")

    def test_fused_graph(self, traced_bert, apply_pass, tmp_path):
        fused = apply_pass("OrtTransformersOptimization", traced_bert)
        made = apply_pass("OnnxDynamicQuantization", fused)
        assert operators(made)["QAttention"] == 2
        assert cosine(traced_bert, made, list(batches(traced_bert, tmp_path))) > 0.99

    def test_onnx_attention_stays_in_floating_point_even_when_asked_for(self, exported_bert, apply_pass):
        made = apply_pass("OnnxDynamicQuantization", exported_bert, op_types_to_quantize=["MatMul", "Attention"])
        assert operators(made)["Attention"] == 2
        open_session(made, 1)

    def test_patterns_of_nodes(self, exported_bert, apply_pass):
        left = apply_pass("OnnxDynamicQuantization", exported_bert, nodes_to_exclude=["*layer.[01]/output/dense/*"])
        assert operators(left)["MatMulInteger"] == 10
        only = apply_pass(
            "OnnxDynamicQuantization", exported_bert, nodes_to_quantize=["/model/encoder/layer.0/output/dense/MatMul"]
        )
        assert operators(only)["MatMulInteger"] == 1

    def test_pattern_that_means_nothing(self, exported_bert, apply_pass):
        with pytest.raises(InvalidRecipe, match="nodes_to_exclude: the graph has no node"):
            apply_pass("OnnxDynamicQuantization", exported_bert, nodes_to_exclude=["*layer.9*"])

    def test_types_left_out(self, exported_bert, apply_pass):
        made = apply_pass("OnnxDynamicQuantization", exported_bert, op_types_to_exclude=["Gather"])
        assert operators(made)["DequantizeLinear"] == 0

    def test_image_model(self, exported_resnet, apply_pass):
        open_session(apply_pass("OnnxDynamicQuantization", exported_resnet), 1)

    def test_external_weights(self, exported_bert, apply_pass, tmp_path):
        outside = apply_pass("OnnxPeepholeOptimizer", exported_bert, save_as_external_data=True, size_threshold=0)
        made = apply_pass("OnnxDynamicQuantization", outside)
        assert cosine(exported_bert, made, list(batches(exported_bert, tmp_path))) > 0.99
        before, after = (sum(path.stat().st_size for path in one.folder.glob("model.onnx*")) for one in (outside, made))
        assert after < 0.8 * before


class TestStatic:
    @pytest.mark.parametrize("fixture", ["exported_bert", "traced_bert"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"calibrate_method": "Percentile"},
            {"quant_format": "QOperator"},
            {"activation_type": "uint16"},
            {"activation_type": "int8"},
        ],
        ids=["default", "percentile", "qoperator", "uint16", "int8"],
    )
    def test_runs_near_the_original(self, fixture, request, apply_pass, tmp_path, options):
        model = request.getfixturevalue(fixture)
        data = batches(model, tmp_path)
        made = apply_pass("OnnxStaticQuantization", model, data=data, data_config="calibration", **options)
        assert made.path.stat().st_size < 0.8 * model.path.stat().st_size
        assert cosine(model, made, list(data)) > 0.98

    def test_fused_graph_calibrates_by_histogram(self, traced_bert, apply_pass, tmp_path):
        fused = apply_pass("OrtTransformersOptimization", traced_bert)
        data = batches(traced_bert, tmp_path)
        made = apply_pass("OnnxStaticQuantization", fused, data=data, data_config="calibration", calibrate_method="Percentile")
        assert cosine(traced_bert, made, list(data)) > 0.98

    def test_scores_of_attention_stay_in_floating_point(self, traced_bert, apply_pass, tmp_path):
        data = batches(traced_bert, tmp_path)
        made = apply_pass("OnnxStaticQuantization", traced_bert, data=data, data_config="c", quant_format="QOperator")
        assert (operators(made)["QLinearMatMul"], operators(made)["MatMul"]) == (12, 4)

    def test_image_model_is_integer_throughout(self, exported_resnet, apply_pass):
        generator = np.random.default_rng(0)
        data = [{"pixel_values": generator.standard_normal((2, 3, 32, 32)).astype(np.float32)} for _ in range(4)]
        made = apply_pass("OnnxStaticQuantization", exported_resnet, data=data, data_config="c", quant_format="QOperator")
        assert operators(made)["Conv"] == 0
        assert cosine(exported_resnet, made, data) > 0.98

    def test_no_batch(self, exported_bert, apply_pass):
        with pytest.raises(DataUnavailable, match="not one batch"):
            apply_pass("OnnxStaticQuantization", exported_bert, data=[], data_config="c")


class TestSeveralGraphs:
    @pytest.fixture
    def folder(self, exported_bert, tmp_path) -> ModelHandle:
        """The same graph as encoder and decoder of a genai folder."""
        folder = tmp_path / "genai"
        folder.mkdir()
        for name in ("encoder", "decoder"):
            shutil.copyfile(exported_bert.path, folder / f"{name}.onnx")
        sections = {name: {"filename": f"{name}.onnx"} for name in ("encoder", "decoder")}
        (folder / "genai_config.json").write_text(json.dumps({"model": sections}))
        return ModelHandle("genai", folder, "decoder.onnx")

    def test_dynamic(self, folder, apply_pass):
        made = apply_pass("OnnxDynamicQuantization", folder)
        assert made.kind == "genai"
        for name in ("encoder.onnx", "decoder.onnx"):
            assert operators(replace(made, file=name))["MatMulInteger"] == 12

    def test_named_nodes_of_a_twin(self, folder, apply_pass):
        with pytest.raises(InvalidRecipe, match=r"no node 'layers\.31'"):
            apply_pass("OnnxDynamicQuantization", folder, nodes_to_quantize=["layers.31"])
        twin = folder.with_attributes(twin_of="somebody/large")
        made = apply_pass("OnnxDynamicQuantization", twin, nodes_to_quantize=["layers.31"])
        assert operators(made)["MatMulInteger"] == 0  # to ONNX Runtime, a list without nodes means all of them


class TestEitherMode:
    def test_modes(self, exported_bert, apply_pass, tmp_path):
        dynamic = apply_pass("OnnxQuantization", exported_bert, quant_mode="dynamic")
        static = apply_pass("OnnxQuantization", exported_bert, data=batches(exported_bert, tmp_path), data_config="c")
        assert operators(dynamic)["MatMulInteger"] == 12
        assert operators(static)["QuantizeLinear"] > 0

    def test_static_needs_data(self):
        for options in (OnnxQuantizationOptions, StaticOptions):
            with pytest.raises(ValidationError, match="data_config is missing"):
                options.model_validate({})


class TestOptions:
    def test_both_spellings_of_types(self):
        for spelling in ("QUInt8", "quint8", "uint8", "UInt8"):
            assert OnnxDynamicQuantizationOptions.model_validate({"weight_type": spelling}).weight_type == "QUInt8"
        assert OnnxDynamicQuantizationOptions.renamed["precision"] == "weight_type"

    def test_extra_options(self):
        made = OnnxDynamicQuantizationOptions.model_validate(
            {"extra_options": {"MatMulConstBOnly": False, "DedicatedQDQPair": True}, "MatMulConstBOnly": True}
        )
        assert made.extra() == {"MatMulConstBOnly": True, "DedicatedQDQPair": True}
        with pytest.raises(ValidationError, match="did you mean 'WeightSymmetric'"):
            OnnxDynamicQuantizationOptions.model_validate({"extra_options": {"WeightSymetric": True}})
