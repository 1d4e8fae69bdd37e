"""Encoders from the current exporter: attention in ONNX Runtime's operator, and the last layer for the token that is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

LAYERS = 2
TIDY: Mapping[str, Any] = {"use_multi_head_attention": True, "skip_unread_tokens": True}
Feed = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of("openai/clip-vit-base-patch32")
    return make_twin(twin, "zero-shot-image-classification", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return make_twin(architecture_of("google/vit-base-patch16-224"), "image-classification", tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return make_twin(architecture_of("facebook/dinov2-small"), "image-feature-extraction", tmp_path_factory.mktemp("dinov2"))


def operators(model: ModelHandle, file: str) -> Counter[str]:
    graph = onnx.load(model.folder / file, load_external_data=False).graph
    return Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in graph.node)


def pixels(model: ModelHandle, batch: int = 2) -> Feed:
    (value,) = open_session(model, 1).get_inputs()
    shape = [batch, *(size if isinstance(size, int) else 224 for size in value.shape[1:])]
    return {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def texts_and_picture(vocabulary: int) -> Feed:
    ids = np.random.default_rng(1).integers(5, vocabulary - 5, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    picture = np.random.default_rng(2).standard_normal((2, 3, 224, 224)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": picture}


def by_torch(model: ModelHandle, feed: Feed, output: str) -> np.ndarray[Any, Any]:
    import torch

    with torch.inference_mode():
        outputs = load_torch(model)(**{name: torch.from_numpy(value) for name, value in feed.items()})
    array: np.ndarray[Any, Any] = outputs[output].numpy()
    return array


def rows_of_last_layer(model: ModelHandle, file: str, feed: Feed) -> int:
    """Returns how many tokens the last attention of a graph computes."""
    graph = onnx.load(model.folder / file)
    last = [node for node in graph.graph.node if node.op_type == "MultiHeadAttention"][-1]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    found = session.run([last.output[0]], {name: value for name, value in feed.items() if name in known})[0]
    return int(found.shape[1])


def test_both_towers_of_clip_are_fused_and_read_one_token(clip: ModelHandle, apply_pass: Callable[..., ModelHandle]) -> None:
    exported = apply_pass("OnnxConversion", clip, split_towers=True)
    tidy = apply_pass("OnnxPeepholeOptimizer", exported, **TIDY)
    feed = texts_and_picture(300)
    for file in ("text_encoder.onnx", "image_encoder.onnx"):
        made = operators(tidy, file)
        assert made["com.microsoft:MultiHeadAttention"] == LAYERS
        assert made["Attention"] == made["Softmax"] == 0
        assert rows_of_last_layer(tidy, file, feed) == 1
    names = [one.name for one in open_session(tidy, 1).get_outputs()]
    for name, found in zip(names, open_session(tidy, 1).run(None, feed), strict=True):
        np.testing.assert_allclose(found, by_torch(clip, feed, name), atol=2e-5)


def test_the_last_layer_of_a_classifier_is_computed_for_its_class_token(
    vit: ModelHandle, apply_pass: Callable[..., ModelHandle]
) -> None:
    exported = apply_pass("OnnxConversion", vit)
    whole = apply_pass("OnnxPeepholeOptimizer", exported, use_multi_head_attention=True)
    tidy = apply_pass("OnnxPeepholeOptimizer", exported, **TIDY)
    feed = pixels(tidy)
    assert rows_of_last_layer(whole, "model.onnx", feed) > rows_of_last_layer(tidy, "model.onnx", feed) == 1
    found = open_session(tidy, 1).run(["logits"], feed)[0]
    np.testing.assert_allclose(found, by_torch(vit, feed, "logits"), atol=2e-5)


def test_where_all_tokens_are_read_all_are_computed(dinov2: ModelHandle, apply_pass: Callable[..., ModelHandle]) -> None:
    tidy = apply_pass("OnnxPeepholeOptimizer", apply_pass("OnnxConversion", dinov2), **TIDY)
    assert operators(tidy, "model.onnx")["com.microsoft:MultiHeadAttention"] == LAYERS
    feed = pixels(tidy)
    assert rows_of_last_layer(tidy, "model.onnx", feed) > 1
    found = open_session(tidy, 1).run(["last_hidden_state"], feed)[0]
    np.testing.assert_allclose(found, by_torch(dinov2, feed, "last_hidden_state"), atol=2e-5)


def test_padding_stays_masked(
    tiny_bert: ModelHandle, exported_bert: ModelHandle, apply_pass: Callable[..., ModelHandle]
) -> None:
    tidy = apply_pass("OnnxPeepholeOptimizer", exported_bert, **TIDY)
    assert operators(tidy, "model.onnx")["com.microsoft:MultiHeadAttention"] == LAYERS
    ids = np.random.default_rng(1).integers(5, 35, (3, 9))
    mask = np.ones_like(ids)
    mask[0, 4:] = mask[2, :3] = 0  # behind the text, and before it
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    known = {one.name for one in open_session(tidy, 1).get_inputs()}
    feed = {name: value for name, value in feed.items() if name in known}
    found = open_session(tidy, 1).run(["last_hidden_state"], feed)[0]
    np.testing.assert_allclose(found[mask == 1], by_torch(tiny_bert, feed, "last_hidden_state")[mask == 1], atol=2e-5)


HEADS_OF_FOUR = """<ir_version: 10, opset_import: ["": 23]>
g (float[2,5,8] x) => (float[2,5,8] y)
<int64[4] split = {2, 5, 4, 2}, int64[4] keys = {2, 5, KEY_NUMBER, 2}, int64[3] whole = {2, 5, 8},
 int64[1] zero = {0}, int64[1] four = {4}, int64[1] two = {2}>
{
    a = Reshape (x, split)
    q = Transpose <perm = [0, 2, 1, 3]> (a)
    KEYS
    o = Attention <ATTRIBUTES> (q, k, k)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape (t, whole)
}"""
SAME = "b = Reshape (x, keys) k = Transpose <perm = [0, 2, 1, 3]> (b)"
FEWER = "n = Slice (x, zero, four, two) b = Reshape (n, keys) k = Transpose <perm = [0, 2, 1, 3]> (b)"


@pytest.mark.parametrize(
    ("attributes", "keys", "replaced"),
    [("scale = 0.3", SAME, True), ("is_causal = 1", SAME, True), ("softcap = 2.0", SAME, False), ("scale = 0.3", FEWER, False)],
)
def test_only_attention_that_means_the_same_is_replaced(
    attributes: str, keys: str, replaced: bool, tmp_path: Any, apply_pass: Callable[..., ModelHandle]
) -> None:
    text = (
        HEADS_OF_FOUR.replace("KEYS", keys)
        .replace("KEY_NUMBER", "4" if keys == SAME else "2")
        .replace("ATTRIBUTES", attributes)
    )
    before = onnx.parser.parse_model(text)
    onnx.save(before, tmp_path / "model.onnx")
    handle = ModelHandle("onnx", tmp_path, "model.onnx")
    after = apply_pass("OnnxPeepholeOptimizer", handle, **TIDY)
    assert (operators(after, "model.onnx")["com.microsoft:MultiHeadAttention"] == 1) == replaced
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)}
    expected, found = (open_session(one, 1).run(None, feed)[0] for one in (handle, after))
    np.testing.assert_allclose(found, expected, atol=1e-5)
