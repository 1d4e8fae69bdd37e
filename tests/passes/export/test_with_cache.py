"""Language models are exported with their cache, and onnxruntime-genai generates with them what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.data.scripted_model import load_module
from runner.errors import InvalidRecipe
from runner.evaluation.parity import Parity
from runner.models.handle import ModelHandle
from runner.models.session import open_session

PROMPT = [2, 9, 14, 6, 20]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A Gemma 3 of two narrow layers, the first of which sees only the last four tokens."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"], max_position_embeddings=64,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return ModelHandle("hf", folder, None, "text-generation-with-past", {"architecture": "Gemma3ForCausalLM"})


def steps(made: ModelHandle, ids: np.ndarray, mask: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of the tokens up to `cut`, and of those behind it, which read the cache of the first."""
    session = open_session(made, 1)
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    empty = {name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    first = session.run(
        None, {"input_ids": ids[:, :cut], "attention_mask": mask[:, :cut], "position_ids": positions[:, :cut], **empty}
    )
    cache = dict(zip(shapes, first[1:], strict=True))
    rest = session.run(None, {"input_ids": ids[:, cut:], "attention_mask": mask, "position_ids": positions[:, cut:], **cache})
    return first[0], rest[0]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "tracing"])
def test_cache_continues_what_padded_prompts_began(windowed: ModelHandle, apply_pass: Any, dynamo: bool) -> None:
    made = apply_pass("OnnxConversion", windowed, use_dynamo_exporter=dynamo)
    session = open_session(made, 1)
    assert [one.name for one in session.get_inputs()][:4] == [
        "input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
    ]  # fmt: skip
    shapes = {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["past_key_values.1.value"] == ["batch_size", 1, "past_sequence_length", 16]
    assert shapes["present.1.value"] == ["batch_size", 1, "total_sequence_length", 16]
    ids = np.random.default_rng(0).integers(3, 40, (2, 11))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    found = np.concatenate(steps(made, ids, mask, 8), axis=1)
    with torch.no_grad():
        module = load_module(windowed)
        positions = torch.from_numpy(np.maximum(mask.cumsum(-1) - 1, 0))
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "position_ids": positions}
        expected = module(**given, use_cache=False).logits.numpy()
    np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=1e-4)


def test_genai_generates_with_the_exported_graph(tiny_llama: ModelHandle, apply_pass: Any) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    exported = apply_pass(
        "OnnxConversion", tiny_llama, use_dynamo_exporter=False, save_metadata_for_token_generation=True, torch_dtype="float32"
    )
    assert (exported.folder / "tokenizer.json").is_file()
    made = apply_pass("ModelBuilder", exported, metadata_only=True, precision="fp32")
    assert Parity(tiny_llama, 1).compare(made)["outputs"]["logits_while_decoding"]["cosine"] > 0.9999
    parameters = og.GeneratorParams(og.Model(str(made.folder)))
    parameters.set_search_options(max_length=len(PROMPT) + 8, min_length=len(PROMPT) + 8, do_sample=False)
    generator = og.Generator(og.Model(str(made.folder)), parameters)
    generator.append_tokens(np.array([PROMPT]))
    while not generator.is_done():
        generator.generate_next_token()
    expected = load_module(tiny_llama).generate(
        torch.tensor([PROMPT]), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )  # fmt: skip
    assert list(generator.get_sequence(0)) == expected[0].tolist()


def test_named_task_without_past_has_no_cache(tiny_llama: ModelHandle, apply_pass: Any) -> None:
    with_past = ModelHandle("hf", tiny_llama.folder, None, None, tiny_llama.attributes)
    for model, cached in ((tiny_llama, False), (with_past, True)):
        session = open_session(apply_pass("OnnxConversion", model, use_dynamo_exporter=False), 1)
        assert any(one.name.startswith("past_key_values") for one in session.get_inputs()) is cached


def test_half_precision_caches_are_half_as_well(tiny_llama: ModelHandle, apply_pass: Any) -> None:
    made = apply_pass(
        "OnnxConversion", tiny_llama, use_dynamo_exporter=False, save_metadata_for_token_generation=True, torch_dtype="float16",
        past_key_value_name="past",
    )  # fmt: skip
    types = {one.name: one.type for one in open_session(made, 1).get_inputs()}
    assert types["past.0.key"] == "tensor(float16)"


def test_model_that_keeps_another_state(tmp_path: Path, apply_pass: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1, intermediate_size=32)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    model = ModelHandle("hf", tmp_path, None, "text-generation-with-past", {})
    with pytest.raises(InvalidRecipe, match="ModelBuilder"):
        apply_pass("OnnxConversion", model, use_dynamo_exporter=False)
