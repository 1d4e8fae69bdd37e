"""Models of every kind of input are exported for their task and compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from runner.data.scripted_model import load_module
from runner.errors import InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput, made_up, source_inputs
from runner.models.session import open_session
from runner.models.tasks import TASKS, task_of

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def clip() -> Any:
    text = {**SMALL, "vocab_size": 60, "max_position_embeddings": 20, "eos_token_id": 59}
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def speech() -> Any:
    config = transformers.Wav2Vec2Config(
        **SMALL, vocab_size=20, conv_dim=[16, 16], conv_stride=[5, 4], conv_kernel=[10, 4], num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, do_stable_layer_norm=False,
    )  # fmt: skip
    return transformers.Wav2Vec2ForCTC(config)


def detector() -> Any:
    config = transformers.YolosConfig(**SMALL, image_size=[32, 32], patch_size=16, num_detection_tokens=4, num_labels=3)
    return transformers.YolosForObjectDetection(config)


MADE = {
    "automatic-speech-recognition": whisper,
    "text2text-generation": t5,
    "zero-shot-image-classification": clip,
    "object-detection": detector,
    None: speech,
}


@pytest.mark.parametrize("task", MADE)
def test_export_for_a_task(task: str | None, tmp_path: Path, apply_pass: Any) -> None:
    torch.manual_seed(0)
    module = MADE[task]()
    module.save_pretrained(tmp_path)
    model = ModelHandle("hf", tmp_path, None, task, {"architecture": type(module).__name__})
    made = apply_pass("OnnxConversion", model, use_dynamo_exporter=False)
    session = open_session(made, 1)
    free = {one for value in session.get_inputs() for one in value.shape if isinstance(one, str)}
    sizes = {name: 3 if "batch" in name else 12_000 if name == "samples" else 7 for name in free}
    feed = made_up(source_inputs(model), tmp_path, sizes)
    with torch.no_grad():
        expected = load_module(model)(**{name: torch.from_numpy(array) for name, array in feed.items()}, return_dict=True)
    for value, ours in zip(session.get_outputs(), session.run(None, feed), strict=True):
        np.testing.assert_allclose(ours, expected[value.name].numpy(), atol=1e-4)


def test_task_of_an_architecture() -> None:
    assert task_of(ModelHandle("hf", Path(), None, None, {"architecture": "LlamaForCausalLM"})) == "text-generation-with-past"
    assert task_of(ModelHandle("hf", Path(), None, None, {"architecture": "BertModel"})) == "feature-extraction"
    assert task_of(ModelHandle("hf", Path(), None, "fill-mask", {"architecture": "BertModel"})) == "fill-mask"


def test_every_auto_class_exists() -> None:
    assert all(hasattr(transformers, task.auto_class) for task in TASKS.values() if task.auto_class)


def test_inputs_that_only_a_processor_knows(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="processor"):
        source_inputs(ModelHandle("hf", tmp_path, None, "image-text-to-text"))


def test_io_config_of_a_transformers_model_fixes_shapes_and_names(tiny_resnet: ModelHandle, apply_pass: Any) -> None:
    io = {"input_names": ["pixel_values"], "input_shapes": [[1, 3, 32, 32]], "output_names": ["output"]}
    made = apply_pass("OnnxConversion", tiny_resnet.with_attributes(io_config=io), use_dynamo_exporter=False)
    session = open_session(made, 1)
    assert [one.name for one in session.get_outputs()] == ["output"]
    assert session.get_inputs()[0].shape == [1, 3, 32, 32]
    assert source_inputs(tiny_resnet) == (GraphInput("pixel_values", "float32", ("batch", 3, 32, 32)),)
