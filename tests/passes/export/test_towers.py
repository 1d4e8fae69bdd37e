"""A model of pictures and texts becomes two encoders and what compares them; each computes what PyTorch does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from runner.data.scripted_model import load_module
from runner.errors import InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models.handle import ModelHandle
from runner.models.inputs import model_inputs
from runner.models.session import open_session
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

OUTPUTS = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
FILES = ["text_encoder.onnx", "image_encoder.onnx", "similarity.onnx"]
TRACED = {"use_dynamo_exporter": False, "target_opset": 17}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ModelHandle:
    twin = architecture_of("openai/clip-vit-base-patch32")
    return make_twin(twin, "zero-shot-image-classification", tmp_path_factory.mktemp("clip"))


def feed() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    ids = random.integers(3, 300, (3, 7))
    ids[0, 6], ids[1, 3:], ids[2, 5:] = 1, 1, 1
    mask = (np.arange(7) < [[7], [4], [6]]).astype(np.int64)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random.standard_normal((2, 3, 224, 224)).astype(np.float32),
    }


def expected(source: ModelHandle) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        found = load_module(source)(**{name: torch.from_numpy(array) for name, array in feed().items()})
    return {name: found[name].numpy() for name in OUTPUTS}


def alone(model: ModelHandle, file: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.folder / file)
    return session.run(None, {one.name: feed()[one.name] for one in session.get_inputs()})[0]


@pytest.mark.parametrize("options", [TRACED, {}], ids=["traced", "dynamo"])
def test_the_chain_and_each_encoder_alone_give_what_torch_gives(source, apply_pass, options):
    parts = apply_pass("OnnxConversion", source, split_towers=True, **options)
    assert parts.attributes["components"] == FILES
    wanted = expected(source)
    session = open_session(parts, 1)
    assert [one.name for one in session.get_outputs()] == OUTPUTS
    assert [one.shape[:2] for one in session.get_outputs()[:2]] == [
        ["image_batch", "text_batch"],
        ["text_batch", "image_batch"],
    ]
    assert [one.name for one in model_inputs(parts)] == ["input_ids", "attention_mask", "pixel_values"]
    for name, array in zip(OUTPUTS, session.run(None, feed()), strict=True):
        np.testing.assert_allclose(array, wanted[name], atol=2e-5)
    np.testing.assert_allclose(alone(parts, FILES[0]), wanted["text_embeds"], atol=2e-5)
    np.testing.assert_allclose(alone(parts, FILES[1]), wanted["image_embeds"], atol=2e-5)


def test_each_encoder_is_fused_with_its_own_heads(source, apply_pass):
    parts = apply_pass("OnnxConversion", source, split_towers=True, **TRACED)
    fused = apply_pass("OrtTransformersOptimization", parts, model_type="clip", opt_level=0)
    pictures = [node for node in onnx.load(fused.folder / FILES[1]).graph.node if node.op_type == "Attention"]
    assert [onnx.helper.get_node_attr_value(node, "num_heads") for node in pictures] == [6, 6]
    wanted = expected(source)
    for name, array in zip(OUTPUTS, open_session(fused, 1).run(None, feed()), strict=True):
        np.testing.assert_allclose(array, wanted[name], atol=2e-5)


def test_one_graph_of_two_towers_is_not_fused_with_the_heads_of_one(source, apply_pass):
    whole = apply_pass("OnnxConversion", source, **TRACED)
    assert whole.file == "model.onnx"
    fused = apply_pass("OrtTransformersOptimization", whole, model_type="clip", opt_level=0)
    wanted = expected(source)
    for name, array in zip(OUTPUTS, open_session(fused, 1).run(None, feed()), strict=True):
        np.testing.assert_allclose(array, wanted[name], atol=2e-5)


def test_parity_compares_every_output_of_the_chain(source, apply_pass):
    parts = apply_pass("OnnxConversion", source, split_towers=True, **TRACED)
    told = Parity(source, 1).compare(parts)
    assert told["numeric"]
    assert sorted(told["outputs"]) == sorted(OUTPUTS)
    assert min(one["cosine"] for one in told["outputs"].values()) > 0.99999


def test_scores_stay_in_fp32_where_the_encoders_are_halved(source, apply_pass):
    parts = apply_pass("OnnxConversion", source, split_towers=True, **TRACED)
    halved = apply_pass("OrtTransformersOptimization", parts, model_type="clip", opt_level=0, float16=True)
    kinds = {file: {one.data_type for one in onnx.load(halved.folder / file).graph.initializer} for file in FILES}
    assert onnx.TensorProto.FLOAT16 in kinds[FILES[0]] & kinds[FILES[1]]
    assert onnx.TensorProto.FLOAT16 not in kinds[FILES[2]]


def test_a_model_without_towers_is_one_error(tiny_bert, apply_pass):
    with pytest.raises(InvalidRecipe, match=r"no two towers: its graph gives last_hidden_state"):
        apply_pass("OnnxConversion", tiny_bert, split_towers=True)
