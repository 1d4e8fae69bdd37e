import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from runner.errors import ModelUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_tokenizer, load_torch
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.import_gguf import PASS, ImportGgufOptions
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def write_gguf(source: ModelHandle, path: Path, architecture: str = "qwen2") -> None:
    """Writes a tiny Qwen2 (whose projections GGUF stores as they are) with Q8_0 matrices."""
    config = json.loads((source.folder / "config.json").read_text())
    tokenizer = load_tokenizer(source)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    model = json.loads((source.folder / "tokenizer.json").read_text())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens += [f"[PAD{at}]" for at in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if at in tokenizer.all_special_ids else 1 for at in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in load_torch(source).state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stored = name
        for ours, theirs in NAMES.items():
            stored = stored.replace(ours, theirs)
        values = tensor.numpy().astype(np.float32)
        if values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    for name in ("output", "scratch"):
        (tmp_path / name).mkdir()
    return PassContext(tmp_path / "output", tmp_path / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)


def test_imports_a_quantised_file(tmp_path: Path, context: PassContext):
    twin = architecture_of("Qwen/Qwen2.5-0.5B-Instruct")
    source = make_twin(twin, twin.task, tmp_path / "source")
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(source, folder / "tiny.gguf")

    model = PASS.apply(ModelHandle("gguf", folder, "tiny.gguf", "text-generation"), ImportGgufOptions(), context)

    config = json.loads((model.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert model.attributes["model_type"] == "qwen2"
    assert (model.folder / "generation_config.json").is_file()
    ours, theirs = load_tokenizer(model), load_tokenizer(source)
    text = "The museum opens at nine."
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    messages = [{"role": "user", "content": "Hi"}]
    rendered = [one.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for one in (ours, theirs)]
    assert rendered[0] == rendered[1]
    tokens = torch.tensor([theirs(text)["input_ids"]])
    with torch.inference_mode():
        found, expected = (load_torch(handle)(tokens).logits for handle in (model, source))
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    "content", [b"", b"GG", b"PK\x03\x04 something else", b"GGUF\x63\x00\x00\x00", b"GGUF\x03\x00\x00\x00"]
)
def test_what_is_no_whole_gguf_is_refused(tmp_path: Path, context: PassContext, content: bytes):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="model-damaged"):
        PASS.apply(ModelHandle("gguf", tmp_path, "model.gguf", "text-generation"), ImportGgufOptions(), context)


def test_a_truncated_file_is_refused(tmp_path: Path, context: PassContext):
    twin = architecture_of("Qwen/Qwen2.5-0.5B-Instruct")
    write_gguf(make_twin(twin, twin.task, tmp_path / "source"), tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelUnavailable, match="model-damaged"):
        PASS.apply(ModelHandle("gguf", tmp_path, "model.gguf", "text-generation"), ImportGgufOptions(), context)


def test_an_architecture_that_is_not_read_is_named(tmp_path: Path, context: PassContext):
    twin = architecture_of("Qwen/Qwen2.5-0.5B-Instruct")
    write_gguf(make_twin(twin, twin.task, tmp_path / "source"), tmp_path / "model.gguf", architecture="plamo")
    with pytest.raises(RunFailed, match="plamo"):
        PASS.apply(ModelHandle("gguf", tmp_path, "model.gguf", "text-generation"), ImportGgufOptions(), context)
