"""A Llama of transformers as GGUF files for llama.cpp: the same weights in F16, and quantised by llama.cpp itself.

No vocabulary is written: the suite feeds ids of tokens.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from performance.contest import PeerFailed

# llama.cpp's numbers of file types (llama.h, enum llama_ftype).
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q4_K_M": 15}
_QUANTISE = """
import llama_cpp, sys
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), options))
"""
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf(source: Path, kind: str, folder: Path, python: Path, threads: int) -> Path:
    """Returns the GGUF file of a transformers folder in a kind of `FILE_TYPES`, made where it is missing.

    Raises:
        PeerFailed: llama.cpp cannot quantise it.
    """
    plain, made = folder / "F16.gguf", folder / f"{kind}.gguf"
    if not plain.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write(source, plain)
    if not made.is_file():
        partial = made.with_suffix(".partial")
        command = [str(python), "-c", _QUANTISE, str(plain), str(partial), str(FILE_TYPES[kind]), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerFailed(f"llama.cpp cannot write {kind}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
        partial.rename(made)
    return made


def _write(source: Path, path: Path) -> None:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    _describe(writer, config)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                value = tensors.get_tensor(name).to(torch.float32).numpy()
                if ".q_proj." in name or ".k_proj." in name:
                    value = _interleaved(value, heads if ".q_proj." in name else key_heads)
                kind = GGMLQuantizationType.F16 if value.ndim > 1 else GGMLQuantizationType.F32
                writer.add_tensor(_name(name), value.astype(np.float16) if value.ndim > 1 else value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def _describe(writer: Any, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    width, heads = config["hidden_size"], config["num_attention_heads"]
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(config.get("head_dim") or width // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _interleaved(weight: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring numbers where transformers rotates the halves of a head (its LlamaModel.permute)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{_PARTS[part.removesuffix('.weight')]}.weight"
