"""Encoders for CUDA: masks as numbers added to scores, biases folded, logits at a width that suits matrix units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.models.torch_source import load_torch
from runner.passes.graph.multi_head_attention import MASKED, take_attention_apart
from runner.passes.graph.wide_products import align_wide_products

LAYERS = 2
FUSE: Mapping[str, Any] = {
    "model_type": "bert",
    "opt_level": 0,
    "optimization_options": {
        "attention_mask_format": 2, "enable_embed_layer_norm": False, "use_multi_head_attention": True,
    },
}  # fmt: skip
Apply = Callable[..., ModelHandle]
Feed = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def biased_bert(tiny_masked_bert: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """The BERT that fills masks, of a vocabulary of 1,030 words, with biases that are no zeros."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("biased-bert")
    config = transformers.AutoConfig.from_pretrained(tiny_masked_bert.folder, vocab_size=1030)
    module = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    module.save_pretrained(folder)
    return ModelHandle("hf", folder, None, "fill-mask", {"model_type": "bert", "architecture": "BertForMaskedLM"})


@pytest.fixture(scope="module")
def feed() -> Feed:
    """Texts padded behind, padded before, whole, and one whose mask hides all of its tokens."""
    ids = np.random.default_rng(1).integers(5, 1000, (4, 9))
    mask = np.ones_like(ids)
    mask[0, 4:] = mask[1, :3] = mask[3] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.folder / model.file, load_external_data=False).graph.node)


def logits(model: ModelHandle, feed: Feed) -> np.ndarray[Any, Any]:
    session = open_session(model, 1)
    known = {one.name for one in session.get_inputs()}
    found: np.ndarray[Any, Any] = session.run(["logits"], {name: one for name, one in feed.items() if name in known})[0]
    return found


def by_torch(model: ModelHandle, feed: Feed) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = load_torch(model)(**{k: torch.from_numpy(v) for k, v in feed.items()})["logits"].numpy()
    return found


@pytest.mark.parametrize("float16", [False, True])
def test_padded_texts_are_read_as_by_the_source(float16: bool, biased_bert: ModelHandle, feed: Feed, apply_pass: Apply) -> None:
    traced = apply_pass("OnnxConversion", biased_bert, use_dynamo_exporter=False, target_opset=17)
    fused = apply_pass("OrtTransformersOptimization", traced, target="cuda", float16=float16, **FUSE)
    tidy = apply_pass("OnnxPeepholeOptimizer", fused, fold_attention_biases=True, align_wide_products=True)
    made = operators(tidy)
    assert made["MultiHeadAttention"] == LAYERS
    assert made["Attention"] == made["Softmax"] == 0
    assert made["Where"] == 1
    assert f"{2 * LAYERS} biases of keys and values are no longer added" in apply_pass.said  # type: ignore[attr-defined]
    found, expected = logits(tidy, feed), by_torch(biased_bert, feed)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    seen = feed["attention_mask"].any(axis=1)
    np.testing.assert_allclose(found[seen], expected[seen], atol=0.02 if float16 else 2e-5)
    assert made["Pad"] == int(float16)  # products are aligned in half precision only


def test_attention_that_is_not_recognised_is_told(tmp_path: Path, tiny_masked_bert: ModelHandle, apply_pass: Apply) -> None:
    config = transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=64)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path / "distilbert")
    attributes = {"model_type": "distilbert", "architecture": "DistilBertForMaskedLM"}
    distilbert = ModelHandle("hf", tmp_path / "distilbert", None, "fill-mask", attributes)
    told = "use_multi_head_attention: nothing was done, since no fusion recognises the attention of this graph"
    said = apply_pass.said  # type: ignore[attr-defined]
    for model, unrecognised in ((distilbert, True), (tiny_masked_bert, False)):
        said.clear()
        traced = apply_pass("OnnxConversion", model, use_dynamo_exporter=False, target_opset=17)
        fused = apply_pass("OrtTransformersOptimization", traced, target="cuda", **FUSE)
        assert (operators(fused)["MultiHeadAttention"] == 0, told in said) == (unrecognised, unrecognised)


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs a GPU and its wheel")
@pytest.mark.parametrize("tokens", [1, 5, 8, 33, 64])
def test_every_length_has_a_kernel_on_cuda(tokens: int, biased_bert: ModelHandle, apply_pass: Apply) -> None:
    """CUDA takes other kernels where the rows of what is added to scores are not aligned."""
    traced = apply_pass("OnnxConversion", biased_bert, use_dynamo_exporter=False, target_opset=17)
    fused = apply_pass("OrtTransformersOptimization", traced, target="cuda", float16=True, **FUSE)
    tidy = apply_pass("OnnxPeepholeOptimizer", fused, fold_attention_biases=True, align_wide_products=True)
    ids = np.random.default_rng(3).integers(5, 1000, (3, tokens))
    given: Feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    given["attention_mask"][1, tokens // 2 + 1 :] = 0
    given["attention_mask"][2, : tokens // 3] = 0
    session = onnxruntime.InferenceSession(tidy.folder / tidy.file, providers=["CUDAExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], given)[0], logits(tidy, given), atol=0.02)


def masked(name: str, mask: list[Any], **attributes: Any) -> onnx.ModelProto:
    """Returns Attention or MultiHeadAttention that reads a mask, over rows of width 16."""
    random = np.random.default_rng(0)
    weights = {"w": (16, 48), "b": (48,)} if name == "Attention" else {"b": (48,)}
    given = ["x", "w", "b", "m"] if name == "Attention" else ["x", "x", "x", "b", "m"]
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.INT32),
        helper.make_node(name, given, ["y"], name="attention", domain="com.microsoft", num_heads=4, **attributes),
    ]
    shape = ["batch", "tokens", 16]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("mask", TensorProto.INT64, mask),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(random.standard_normal(size).astype(np.float32), one) for one, size in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, **given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, given)[0]
    return found


@pytest.mark.parametrize("name", ["Attention", "MultiHeadAttention"])
@pytest.mark.parametrize("attributes", [{}, {"mask_filter_value": -3.4e38}])
def test_a_mask_of_tokens_becomes_numbers_added_to_scores(name: str, attributes: dict[str, float]) -> None:
    model = OnnxModel(masked(name, ["batch", "tokens"], **attributes))
    given: Feed = {"x": np.random.default_rng(2).standard_normal((3, 7, 16)).astype(np.float32)}
    given["mask"] = np.array([[1] * 4 + [0] * 3, [0] * 2 + [1] * 5, [1] * 7])
    expected = run(model.model, **given)
    take_attention_apart(model)
    model.topological_sort()
    (attention,) = [node for node in model.model.graph.node if node.op_type == "MultiHeadAttention"]
    assert list(attention.input)[4:] == ["", "m_scores_Where_5"]
    assert [one.name for one in attention.attribute] == ["num_heads"]
    np.testing.assert_allclose(run(model.model, **given), expected, atol=1e-5)
    given["mask"][:] = 0
    assert np.isfinite(run(model.model, **given)).all()


@pytest.mark.parametrize("name", ["Attention", "MultiHeadAttention"])
def test_a_mask_of_lengths_is_left_alone(name: str) -> None:
    model = OnnxModel(masked(name, ["batch"]))
    before = [node.op_type for node in model.model.graph.node]
    assert take_attention_apart(model) == 0
    assert [node.op_type for node in model.model.graph.node] == before
    assert "m" in model.model.graph.node[-1].input


def test_the_score_of_a_masked_token_is_finite_in_half_precision() -> None:
    assert np.float16(MASKED) == MASKED
    assert np.exp(np.float32(MASKED)) == 0
    assert np.isfinite(np.float16(MASKED) - np.float16(30000))


PRODUCT = """<ir_version: 10, opset_import: ["": 17]>
g (float16[b,3,16] x) => (float16[b,3,WIDTH] y)
{
    p = MatMul (x, w)
    y = ENDS
}"""


@pytest.mark.parametrize(
    ("width", "ends", "changed"),
    [
        (1030, "Add (p, bias)", True),
        (1030, "Add (bias, p)", True),
        (1030, "Identity (p)", True),
        (1030, "Add (p, x_bias)", True),
        (1032, "Add (p, bias)", False),
        (30, "Add (p, bias)", False),
    ],
)
def test_a_product_is_aligned_where_its_rows_are_not(width: int, ends: str, changed: bool) -> None:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(PRODUCT.replace("WIDTH", str(width)).replace("ENDS", ends))
    for name, shape in {"w": (16, width), "bias": (width,), "x_bias": (3, width)}.items():
        if name == "w" or f"{name})" in ends or f"({name}," in ends:
            weight = (random.integers(-8, 9, shape) / 8).astype(np.float16)
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
    rows = (random.integers(-8, 9, (2, 3, 16)) / 8).astype(np.float16)
    expected = run(model, x=rows)
    graph = ir.serde.deserialize_model(model)
    assert align_wide_products(graph) == int(changed)
    after = ir.serde.serialize_model(graph)
    products = [node for node in after.graph.node if node.op_type == "MatMul"]
    (weights,) = [one for one in after.graph.initializer if one.name == products[0].input[1]]
    assert (weights.dims[1] % 64 == 0) == changed
    assert ("Add" in {node.op_type for node in after.graph.node}) == (not changed or "x_bias" in ends)
    np.testing.assert_array_equal(run(after, x=rows), expected)
