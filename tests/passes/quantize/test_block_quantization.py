"""Weights in blocks: which are found, what becomes of the graph, and how near the result is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from pydantic import ValidationError

from runner.errors import InvalidRecipe, ModelUnavailable
from runner.models.files import external_files
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme
from runner.models.session import open_session
from runner.passes.graph.scopes import graphs_below
from runner.passes.quantize import block_rtn, hqq, kquant
from runner.passes.quantize.block_quantization import Blocks, nearest, quantize_weights
from runner.passes.quantize.grid import nearest_codes
from runner.passes.quantize.kquant import OnnxKQuantQuantizationOptions

GENERATOR = np.random.default_rng(5)


def weight(name: str, *shape: int, kind: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array((GENERATOR.standard_normal(shape) / 8).astype(kind), name)


def graph(text: str, folder: Path, *weights: onnx.TensorProto) -> ModelHandle:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    model.graph.initializer.extend(weights)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx")


def nodes(model: ModelHandle) -> list[onnx.NodeProto]:
    return [node for one in graphs_below(onnx.load(model.path).graph) for node in one.node]


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in nodes(model))


def outputs(model: ModelHandle, **inputs: Any) -> list[Any]:
    return open_session(model, 1).run(None, inputs)


def near(one: ModelHandle, other: ModelHandle, least: float, **inputs: Any) -> None:
    for a, b in zip(outputs(one, **inputs), outputs(other, **inputs), strict=True):
        assert a.shape == b.shape
        x, y = a.astype(float).ravel(), b.astype(float).ravel()
        assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) > least


def rows(*shape: int) -> Any:
    return GENERATOR.standard_normal(shape).astype(np.float32)


PASSES = ["OnnxBlockWiseRtnQuantization", "OnnxKQuantQuantization", "OnnxHqqQuantization"]


@pytest.fixture
def product(tmp_path) -> ModelHandle:
    """A product, and a Gemm with a bias behind it."""
    return graph(
        """g (float[a,64] x) => (float[a,24] y) {
            [first] h = MatMul (x, w1)
            [second] y = Gemm <transB = 1, alpha = 0.5> (h, w2, b)
        }""",
        tmp_path / "product",
        weight("w1", 64, 48),
        weight("w2", 24, 48),
        weight("b", 24),
    )


class TestPasses:
    @pytest.mark.parametrize("name", PASSES)
    def test_runs_near_the_original(self, name, product, apply_pass):
        made = apply_pass(name, product, block_size=32)
        assert operators(made) == {"MatMulNBits": 2, "Add": 1}
        assert {node.name for node in nodes(made)} >= {"first_Q4", "second_Q4"}
        near(product, made, 0.985, x=rows(5, 64))
        assert made.attributes["precision"] == "int4"
        assert made.kind == "onnx"

    @pytest.mark.parametrize("options", [{"is_symmetric": True}, {"is_symmetric": False}, {"block_size": 16}])
    def test_eight_bits(self, options, product, apply_pass):
        near(product, apply_pass("OnnxBlockWiseRtnQuantization", product, bits=8, **options), 0.9995, x=rows(5, 64))

    def test_eight_bits_of_a_real_architecture(self, exported_bert, apply_pass):
        ids = np.arange(3, 15, dtype=np.int64)[None]
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        made = apply_pass("OnnxKQuantQuantization", exported_bert, bits=8)
        assert operators(made)["MatMulNBits"] == 12
        near(exported_bert, made, 0.999, **given)

    def test_two_bits_load(self, product, apply_pass):
        near(product, apply_pass("OnnxBlockWiseRtnQuantization", product, bits=2, block_size=16), 0.7, x=rows(5, 64))

    def test_computes_in_int8_on_the_cpu_only(self, product, apply_pass):
        def levels(**given: Any) -> list[int]:
            made = apply_pass("OnnxKQuantQuantization", product, **given)
            return [one.i for node in nodes(made) for one in node.attribute if one.name == "accuracy_level"]

        assert levels() == [4, 4]
        assert levels(accuracy_level=0) == []
        assert levels(target="cuda") == []
        assert levels(target="cuda", accuracy_level=2) == [2, 2]

    def test_bits_of_single_nodes(self, product, apply_pass):
        made = apply_pass("OnnxKQuantQuantization", product, customized_weight_config={"fir*": {"bits": 8, "group_size": 64}})
        settings = {node.name: {one.name: one.i for one in node.attribute} for node in nodes(made) if node.domain}
        assert (settings["first_Q8"]["bits"], settings["first_Q8"]["block_size"]) == (8, 64)
        assert (settings["second_Q4"]["bits"], settings["second_Q4"]["block_size"]) == (4, 32)

    def test_nodes_by_name_and_pattern(self, product, apply_pass):
        assert operators(apply_pass("OnnxHqqQuantization", product, nodes_to_exclude=["sec*"]))["Gemm"] == 1
        assert operators(apply_pass("OnnxHqqQuantization", product, nodes_to_include=["second"]))["MatMul"] == 1

    def test_node_that_is_not_there(self, product, apply_pass):
        with pytest.raises(InvalidRecipe, match="did you mean 'first'"):
            apply_pass("OnnxKQuantQuantization", product, nodes_to_exclude=["frist"])
        with pytest.raises(InvalidRecipe, match="customized_weight_config: the graph has no node 'lm_head'"):
            apply_pass("OnnxKQuantQuantization", product, customized_weight_config={"lm_head": {"bits": 8}})
        twin = product.with_attributes(twin_of="somebody/large")
        assert operators(apply_pass("OnnxKQuantQuantization", twin, nodes_to_exclude=["layers.31"]))["MatMulNBits"] == 2
        assert "1 of 1 named nodes are not in the tiny twin" in apply_pass.said

    def test_options_that_make_no_sense(self):
        for wrong in ({"bits": 3}, {"block_size": 48}, {"customized_weight_config": {"n": {"bit": 8}}}):
            with pytest.raises(ValidationError):
                OnnxKQuantQuantizationOptions.model_validate(wrong)


class TestGraphs:
    def test_sizes_that_blocks_do_not_divide(self, tmp_path, apply_pass):
        model = graph("g (float[a,50] x) => (float[a,7] y) { y = MatMul (x, w) }", tmp_path / "odd", weight("w", 50, 7))
        for name in PASSES:
            near(model, apply_pass(name, model, block_size=32), 0.98, x=rows(3, 50))

    @pytest.mark.parametrize("kind", [np.float16, np.float32])
    def test_embedding(self, kind, tmp_path, apply_pass):
        text = f"g (int64[a] i) => ({'float16' if kind == np.float16 else 'float'}[a,64] y) {{ y = Gather (w, i) }}"
        model = graph(text, tmp_path / "table", weight("w", 40, 64, kind=kind))
        for symmetric in (True, False):
            made = apply_pass("OnnxBlockWiseRtnQuantization", model, block_size=32, is_symmetric=symmetric)
            assert operators(made) == {"GatherBlockQuantized": 1}
            near(model, made, 0.985, i=np.array([0, 39, 7]))
        assert operators(apply_pass("OnnxKQuantQuantization", model)) == {"Gather": 1}

    def test_weight_that_is_read_in_three_ways_is_stored_twice(self, tmp_path, apply_pass):
        text = """g (float[a,64] x) => (float[a,96] y, float[a,96] z, float[a,64] v) {
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul (x, t)
            z = Gemm <transB = 1> (x, w)
            v = MatMul (y, w)
        }"""
        model = graph(text, tmp_path / "shared", weight("w", 96, 64))
        made = apply_pass("OnnxKQuantQuantization", model)
        assert operators(made) == {"MatMulNBits": 3}
        assert len(onnx.load(made.path).graph.initializer) == 2 * 3
        near(model, made, 0.98, x=rows(3, 64))

    def test_weight_that_something_else_reads_stays_as_well(self, tmp_path, apply_pass):
        text = "g (float[a,32] x) => (float[a,16] y, float[32,16] z) { y = MatMul (x, w) \n z = Relu (w) }"
        model = graph(text, tmp_path / "kept", weight("w", 32, 16))
        near(model, apply_pass("OnnxKQuantQuantization", model), 0.985, x=rows(3, 32))

    def test_branches_with_weights_of_their_own_of_one_name(self, tmp_path, apply_pass):
        text = """g (bool c, float[a,32] x) => (float[a,16] y) {
            h = MatMul (x, outer)
            y = If (c) <
                then_branch = t () => (float[a,16] r) { q = MatMul (h, w) \n r = MatMul (q, shared) },
                else_branch = e () => (float[a,16] r) { q = MatMul (h, w) \n r = MatMul (q, shared) }
            >
        }"""
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
        model.graph.initializer.extend([weight("outer", 32, 48), weight("shared", 16, 16)])
        for attribute in model.graph.node[1].attribute:
            attribute.g.initializer.append(weight("w", 48, 16))
        (tmp_path / "branches").mkdir()
        onnx.save(model, tmp_path / "branches" / "model.onnx")
        handle = ModelHandle("onnx", tmp_path / "branches", "model.onnx")
        made = apply_pass("OnnxKQuantQuantization", handle, bits=8)
        assert operators(made) == {"MatMulNBits": 5, "If": 1}
        assert len(onnx.load(made.path).graph.initializer) == 2 * 3
        for taken in (True, False):
            near(handle, made, 0.999, c=np.array(taken), x=rows(3, 32))

    def test_nameless_constants_in_half_precision(self, tmp_path, apply_pass):
        text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float16[a,32] x) => (float16[a,32] z) {
            w = Constant ()
            y = MatMul (x, w)
            v = Constant ()
            z = MatMul (y, v)
        }"""
        model = onnx.parser.parse_model(text)
        for at in (0, 2):
            model.graph.node[at].attribute.append(onnx.helper.make_attribute("value", weight("", 32, 32, kind=np.float16)))
        (tmp_path / "half").mkdir()
        onnx.save(model, tmp_path / "half" / "model.onnx")
        handle = ModelHandle("onnx", tmp_path / "half", "model.onnx")
        made = apply_pass("OnnxKQuantQuantization", handle)
        assert operators(made) == {"MatMulNBits": 2}
        near(handle, made, 0.98, x=rows(3, 32).astype(np.float16))
        onnx.checker.check_model(apply_pass("MatMulNBitsToQDQ", made).path)

    def test_quantised_products_and_products_of_activations_stay(self, tmp_path, apply_pass):
        text = "g (float[a,32] x, float[32,a] v) => (float[a,a] y, float[a,16] z) { y = MatMul (x, v) \n z = MatMul (x, w) }"
        once = apply_pass("OnnxKQuantQuantization", graph(text, tmp_path / "twice", weight("w", 32, 16)), bits=8)
        again = apply_pass("OnnxBlockWiseRtnQuantization", once)
        assert operators(again) == {"MatMul": 1, "MatMulNBits": 1}
        assert "holds no weight to quantise" in apply_pass.said[-1]

    def test_every_graph_of_a_genai_folder(self, tmp_path, apply_pass):
        folder = tmp_path / "genai"
        for name in ("encoder", "decoder"):
            model = graph("g (float[a,32] x) => (float[a,16] y) { y = MatMul (x, w) }", folder, weight("w", 32, 16))
            model.path.rename(folder / f"{name}.onnx")
        (folder / "genai_config.json").write_text(
            '{"model": {"encoder": {"filename": "encoder.onnx"}, "decoder": {"filename": "decoder.onnx"}}}'
        )
        made = apply_pass(
            "OnnxKQuantQuantization", ModelHandle("genai", folder, "decoder.onnx"), save_as_external_data=True, size_threshold=0
        )
        assert made.kind == "genai"
        for name in ("encoder", "decoder"):
            assert operators(ModelHandle("onnx", made.folder, f"{name}.onnx")) == {"MatMulNBits": 1}


def squared_error(fit: Any, matrix: torch.Tensor, scheme: Scheme, power: float = 2.0) -> float:
    scales, zeros = fit(matrix, scheme, matrix.shape[1])
    codes = nearest_codes(matrix, scales, zeros, scheme.levels).float().view(*scales.shape, -1)
    back = ((codes - zeros[..., None]) * scales[..., None]).view(matrix.shape)
    return float((matrix - back).abs().pow(power).sum())


class TestGrids:
    MATRIX = torch.from_numpy(np.random.default_rng(1).laplace(0.0, 0.05, (64, 256)).astype(np.float32))
    SCHEME = Scheme(4, 32, symmetric=False)

    @staticmethod
    def plain(matrix: torch.Tensor, scheme: Scheme, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = matrix.view(len(matrix), -1, scheme.group_size)
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        scales = (high - low) / scheme.levels
        return scales, (-low / scales).round()

    @pytest.mark.parametrize("fit", [block_rtn.fit, kquant.fit, hqq.fit], ids=["rtn", "k-quant", "hqq"])
    def test_better_than_the_range_of_a_block(self, fit):
        assert squared_error(fit, self.MATRIX, self.SCHEME) < 0.98 * squared_error(self.plain, self.MATRIX, self.SCHEME)

    def test_hqq_serves_its_own_norm(self):
        assert squared_error(hqq.fit, self.MATRIX, self.SCHEME, 0.7) < squared_error(
            block_rtn.fit, self.MATRIX, self.SCHEME, 0.7
        )

    def test_k_quant_serves_large_weights(self):
        size = self.MATRIX.abs()

        def weighted(fit: Any) -> float:
            scales, zeros = fit(self.MATRIX, self.SCHEME, 256)
            codes = nearest_codes(self.MATRIX, scales, zeros, 15).float().view(*scales.shape, -1)
            back = ((codes - zeros[..., None]) * scales[..., None]).view(self.MATRIX.shape)
            return float(((self.MATRIX - back).square() * size).sum())

        assert weighted(kquant.fit) < weighted(block_rtn.fit)

    @pytest.mark.parametrize("fit", [block_rtn.fit, kquant.fit, hqq.fit], ids=["rtn", "k-quant", "hqq"])
    def test_blocks_of_zeros_and_of_one_value(self, fit):
        matrix = torch.zeros(2, 64)
        matrix[1] = 0.25
        for bits in (4, 8):
            scheme = Scheme(bits, 32, symmetric=False)
            scales, zeros = fit(matrix, scheme, 64)
            assert torch.isfinite(scales).all()
            codes = nearest_codes(matrix, scales, zeros, scheme.levels).float().view(2, 2, -1)
            torch.testing.assert_close(((codes - zeros[..., None]) * scales[..., None]).view(2, 64), matrix)


def test_tells_what_it_did():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[a,32] x) => (float[a,16] y) {y = MatMul(x, w)}'
    )
    model.graph.initializer.append(weight("w", 32, 16))
    blocks = Blocks(nearest(block_rtn.fit), Scheme(4, 32, symmetric=True), ("MatMul",), 0)
    assert quantize_weights(model, blocks) == {"MatMulNBits": 1}
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}


def test_a_model_whose_weights_are_all_excluded_is_not_called_quantised(exported_bert, apply_pass):
    left = apply_pass("OnnxBlockWiseRtnQuantization", exported_bert, nodes_to_exclude=["*"])
    assert left.attributes.get("precision") == exported_bert.attributes.get("precision")
    assert apply_pass("OnnxBlockWiseRtnQuantization", exported_bert).attributes["precision"] == "int4"


@pytest.mark.parametrize("name", PASSES)
def test_weights_beside_the_graph_become_the_same_ones(name, product, apply_pass, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    model = onnx.load(product.path)
    onnx.save(model, beside / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    options = {"block_size": 16, "nodes_to_exclude": ["second"], "size_threshold": 0}
    inside = apply_pass(name, product, **options)
    outside = apply_pass(name, replace(product, folder=beside), **options)
    assert external_files(outside.path) == {"model.onnx.data"}
    where = {one.name: ExternalDataInfo(one) for one in onnx.load(outside.path, load_external_data=False).graph.initializer}
    assert all(not (one.offset or 0) % 4096 for one in where.values() if one.location)
    one, other = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (inside.path, outside.path)
    )
    assert one.keys() == other.keys()
    assert "w2" in one
    assert all(np.array_equal(one[name], other[name]) for name in one)
    near(inside, outside, 0.999999, x=rows(3, 64))


def test_weights_that_are_cut_off_are_refused(product, apply_pass, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    model = onnx.load(product.path)
    onnx.save(model, beside / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    whole = (beside / "model.onnx.data").read_bytes()
    (beside / "model.onnx.data").write_bytes(whole[:-100])
    with pytest.raises(ModelUnavailable, match="not whole"):
        apply_pass("OnnxBlockWiseRtnQuantization", replace(product, folder=beside), block_size=16)
