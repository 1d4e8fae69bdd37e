"""A graph that is cut along its modules computes what it did, and the parts join into one again."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from runner.errors import InvalidRecipe, ModelUnavailable, RunFailed
from runner.evaluation.parity import Parity
from runner.models.components import MANIFEST
from runner.models.files import graphs_of
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.graph.capture_split import CaptureSplitInfoOptions
from runner.passes.graph.split import SplitModelOptions, parse_assignments

TWO_PARTS = {"encoder.layer.0": 0, "encoder.layer.1": 1}
INPUTS = {
    "input_ids": np.array([[2, 8, 9, 3], [2, 11, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "token_type_ids": np.zeros((2, 4), np.int64),
}


def outputs(model: ModelHandle) -> list[np.ndarray]:
    session = open_session(model, 1)
    return session.run(None, {one.name: INPUTS[one.name] for one in session.get_inputs()})


def same(one: ModelHandle, other: ModelHandle) -> None:
    for ours, theirs in zip(outputs(one), outputs(other), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("exported", ["exported_bert", "traced_bert"])
def test_parts_compute_what_the_whole_does_and_join_again(exported, request, apply_pass, tiny_bert):
    whole = request.getfixturevalue(exported)
    parts = apply_pass("SplitModel", whole, split_assignments=TWO_PARTS)
    assert parts.attributes["components"] == ["split_0.onnx", "split_1.onnx"]
    assert parts.file == "split_0.onnx"
    assert not (parts.folder / "model.onnx").exists()
    first, second = (onnx.load(parts.folder / name) for name in parts.attributes["components"])
    onnx.checker.check_model(first)
    onnx.checker.check_model(second)
    assert any("layer.0" in node.name for node in first.graph.node)
    assert not any("layer.1/" in node.name for node in first.graph.node)
    same(parts, whole)
    assert Parity(tiny_bert, 1).compare(parts)["outputs"]["last_hidden_state"]["cosine"] > 0.9999
    joined = apply_pass("ComposeOnnxModels", parts)
    assert "components" not in joined.attributes
    assert {path.name for path in joined.folder.glob("*.onnx")} == {"model.onnx"}
    assert not (joined.folder / MANIFEST).exists()
    same(joined, whole)


def test_weights_beside_the_graphs_and_passes_between(exported_bert, apply_pass):
    parts = apply_pass(
        "SplitModel", exported_bert, split_assignments="encoder.layer.0=0;encoder.layer.1=1", save_as_external_data=True,
        size_threshold=0,
    )  # fmt: skip
    assert sorted(path.name for path in parts.folder.glob("*.data")) == ["split_0.onnx.data", "split_1.onnx.data"]
    assert graphs_of(parts) == ("split_0.onnx", "split_1.onnx")
    half = apply_pass("OnnxFloatToFloat16", parts, keep_io_types=True)
    for name in ("split_0.onnx.data", "split_1.onnx.data"):
        assert (half.folder / name).stat().st_size < 0.6 * (parts.folder / name).stat().st_size
    joined = apply_pass("ComposeOnnxModels", parts)
    assert not list(joined.folder.glob("*.data"))
    same(joined, exported_bert)


def test_quantised_graph_is_cut_where_quantised_tensors_pass(tmp_path, apply_pass):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,2] x) => (float[n,2] y) <float scale = {0.1}, int8 zero = {0}, float[2,2] w = {1, 2, 3, 4}> {
        a = MatMul (x, w)
        q = QuantizeLinear (a, scale, zero)
        d = DequantizeLinear (q, scale, zero)
        b = MatMul (d, w)
        y = Add (b, d)
    }
    """
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("/a/MatMul", "quantize", "dequantize", "/b/MatMul", "/c/Add"), strict=True):
        node.name = name
    onnx.save(model, tmp_path / "model.onnx")
    whole = ModelHandle("onnx", tmp_path, "model.onnx")
    parts = apply_pass("SplitModel", whole, split_assignments={"a": 0, "b": 1, "c": 2})
    first, second, third = (onnx.load(parts.folder / name).graph for name in parts.attributes["components"])
    assert [value.name for value in first.output] == ["q"]
    assert [node.op_type for node in second.node] == ["DequantizeLinear", "MatMul"]
    assert [node.op_type for node in third.node] == ["DequantizeLinear", "Add"]
    feed = {"x": np.array([[0.3, 0.4]], np.float32)}
    expected = open_session(whole, 1).run(None, feed)
    np.testing.assert_array_equal(open_session(parts, 1).run(None, feed), expected)
    joined = apply_pass("ComposeOnnxModels", parts)
    assert len(onnx.load(joined.path).graph.node) == 5
    np.testing.assert_array_equal(open_session(joined, 1).run(None, feed), expected)


def test_what_passes_named_alike_in_two_parts_gets_names_of_their_own(traced_bert, apply_pass):
    parts = apply_pass("SplitModel", traced_bert, split_assignments=TWO_PARTS)
    fused = apply_pass("OrtTransformersOptimization", parts, opt_level=0)
    joined = apply_pass("ComposeOnnxModels", fused)
    nodes = onnx.load(joined.path).graph.node
    assert sum(node.op_type == "SkipLayerNormalization" for node in nodes) == 4
    assert len({node.name for node in nodes if node.name}) == sum(1 for node in nodes if node.name)
    same(joined, traced_bert)


def test_captured_layers_reach_the_split(tiny_llama, apply_pass):
    captured = apply_pass("CaptureSplitInfo", tiny_llama, num_splits=2, unique_embeds_lm_head_splits=True)
    assert captured.kind == "hf"
    assert captured.attributes["split_assignments"] == {
        "model.embed_tokens": 0,
        "model.layers.0": 1,
        "model.layers.1": 2,
        "lm_head": 3,
    }
    whole = apply_pass("OnnxConversion", captured, use_dynamo_exporter=False)
    parts = apply_pass("SplitModel", whole)
    assert len(parts.attributes["components"]) == 4
    assert "split_assignments" not in parts.attributes
    same(parts, whole)
    with pytest.raises(InvalidRecipe, match="split already"):
        apply_pass("SplitModel", parts)


def test_cost_model_fills_parts_up_to_the_memory(tiny_bert, apply_pass, tmp_path):
    rows = [f"encoder.layer.{layer}.attention.self.{part},1024,4096,2048" for layer in range(2) for part in ("query", "key")]
    table = tmp_path / "costs.csv"
    table.write_text("module,num_params,num_bytes,num_flops\nembeddings.word_embeddings,1000,4000,10\n" + "\n".join(rows))
    captured = apply_pass("CaptureSplitInfo", tiny_bert, cost_model=table, accelerator_memory=8192)
    assert list(captured.attributes["split_assignments"].values()) == [0, 1, 1, 2, 2]
    table.write_text("module;num_params\n")
    with pytest.raises(InvalidRecipe, match="cost model"):
        apply_pass("CaptureSplitInfo", tiny_bert, cost_model=table, accelerator_memory=8192)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_splits": 2, "block_to_split": "encoder.layers"}, "did you mean 'encoder.layer'"),
        ({"num_splits": 3}, "num_splits to 2 at most"),
    ],
)
def test_blocks_that_cannot_be_divided(tiny_bert, apply_pass, options, told):
    with pytest.raises(InvalidRecipe, match=told):
        apply_pass("CaptureSplitInfo", tiny_bert, **options)


@pytest.mark.parametrize("options", [{}, {"num_splits": 2, "cost_model": "x.csv"}, {"cost_model": "x.csv"}])
def test_one_way_of_splitting_must_be_chosen(options):
    with pytest.raises(ValidationError, match=r"exactly one|accelerator_memory"):
        CaptureSplitInfoOptions.model_validate(options)


def test_assignments_as_text():
    assert parse_assignments("a.0=0;a.1=1") == {"a.0": 0, "a.1": 1}
    with pytest.raises(ValidationError, match="not of the form"):
        SplitModelOptions.model_validate({"split_assignments": "a.0:0"})


def test_nothing_says_where_to_cut(exported_bert, apply_pass):
    with pytest.raises(InvalidRecipe, match="CaptureSplitInfo"):
        apply_pass("SplitModel", exported_bert)
    with pytest.raises(InvalidRecipe, match=r"no node .* 'decoder\.layer\.0'"):
        apply_pass("SplitModel", exported_bert, split_assignments={"decoder.layer.0": 0})


def test_what_cannot_be_joined(exported_bert, apply_pass):
    with pytest.raises(InvalidRecipe, match="one graph already"):
        apply_pass("ComposeOnnxModels", exported_bert)
    parts = apply_pass("SplitModel", exported_bert, split_assignments=TWO_PARTS)
    backwards = parts.with_attributes(components=["split_1.onnx"])
    with pytest.raises(RunFailed, match="nothing gives the input"):
        apply_pass("ComposeOnnxModels", backwards)
    manifest = parts.folder / MANIFEST
    assert json.loads(manifest.read_text())["outputs"] == ["last_hidden_state"]
    manifest.unlink()
    with pytest.raises(ModelUnavailable, match="split it again"):
        apply_pass("ComposeOnnxModels", parts)
