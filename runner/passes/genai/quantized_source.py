"""Makes a checkpoint with quantised weights readable for onnxruntime-genai's builder.

Its loader of Olive's layout (0.18) takes fused projections apart and miscounts their packed zero points, asks for zero points
in attention even where a scheme has none, does not know a quantised embedding, and hands group sizes on that MatMulNBits does
not serve. The folder written here holds the same codes with projections apart, zero points everywhere, groups cut to blocks
that are served and the embedding in floating point; `shared_embedding` brings its codes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.models.quantized_checkpoint import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    QuantizedMatrix,
    pack,
    write_checkpoint,
)
from runner.models.sharded_weights import ShardedWeights, write_zeros

_PROJECTIONS = (".q_proj", ".k_proj", ".v_proj", ".o_proj", ".gate_proj", ".up_proj", ".down_proj")
_BLOCKS = (256, 128, 64, 32, 16)  # that MatMulNBits serves, largest first

# Outside the numbered layers the loader takes these alone.
_PLACES = re.compile(r"model\.(layers\.\d+\.|embed_tokens\.|norm\.)|lm_head\.|transformer\.")


def write_for_builder(checkpoint: Checkpoint, source: Path, folder: Path, embedding_read: bool) -> None:
    """Writes a checkpoint as the builder reads it.

    Args:
        checkpoint: the weights in `source`.
        source: a transformers folder.
        folder: an empty folder.
        embedding_read: whether the builder's embedding is kept; where it is not, zeros that take no room stand in its place.

    Raises:
        InvalidRecipe: projections of it are in floating point.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _check(checkpoint)
    shards, matrices, unchanged = ShardedWeights(folder), {}, list(checkpoint.floats)
    for whole, matrix in checkpoint.matrices.items():
        if whole == EMBEDDING:
            continue
        before = {one.data_ptr(): key for key, one in matrix.tensors(whole).items()}
        for name, part in _apart(whole, matrix, config):
            made = _in_blocks(_with_zeros(part))
            fresh = {key: one for key, one in made.tensors(name).items() if before.get(one.data_ptr()) != key}
            unchanged += made.tensors(name).keys() - fresh.keys()
            matrices[name] = made
            for key, one in shards.put(fresh).items():  # on the disk: what is held of it can go
                above, _, kind = key.rpartition(".")
                matrices[above] = replace(matrices[above], **{kind: one})
    floats = dict(checkpoint.floats)
    if f"{EMBEDDING}.weight" not in floats:
        embedding = checkpoint.matrices.get(EMBEDDING) or checkpoint.matrices[HEAD]
        if embedding_read:
            floats[f"{EMBEDDING}.weight"] = embedding.dequantized()
        else:
            shape = len(embedding.scales), embedding.scales.shape[1] * embedding.scheme.group_size
            write_zeros(folder / "embedding.safetensors", f"{EMBEDDING}.weight", shape)
    write_checkpoint(replace(checkpoint, matrices=matrices, floats=floats), source, folder, shards, unchanged)


def _apart(name: str, matrix: QuantizedMatrix, config: dict[str, Any]) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Yields the projections that a fused one holds, or the one itself."""
    above, _, last = name.rpartition(".")
    if last == "qkv_proj":
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        q, kv = heads * head, (config.get("num_key_value_heads") or heads) * head
        starts = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
    elif last == "gate_up_proj":
        inner = config["intermediate_size"]
        starts = {"gate_proj": (0, inner), "up_proj": (inner, 2 * inner)}
    else:
        yield name, matrix
        return
    for part, (start, stop) in starts.items():
        yield f"{above}.{part}", matrix.view(start, stop)


def _with_zeros(matrix: QuantizedMatrix) -> QuantizedMatrix:
    if matrix.qzeros is not None:
        return matrix
    return replace(matrix, scheme=replace(matrix.scheme, symmetric=False), qzeros=pack(matrix.zeros(), matrix.scheme.bits))


def _in_blocks(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Returns the matrix with groups that are a power of two: larger ones cut into equal blocks with the same scale."""
    size = matrix.scheme.group_size
    block = next((one for one in _BLOCKS if size % one == 0), size)
    if block == size:
        return matrix
    scales = matrix.scales.repeat_interleave(size // block, 1)
    zeros = pack(matrix.zeros().repeat_interleave(size // block, 1), matrix.scheme.bits)
    return replace(matrix, scheme=replace(matrix.scheme, group_size=block), scales=scales, qzeros=zeros)


def _check(checkpoint: Checkpoint) -> None:
    problems = [
        Problem(
            "not-buildable",
            f"ModelBuilder: {name.removesuffix('.weight')} is in floating point among quantised projections",
            remedy="quantise it as well, Rtn with 8 bits keeps it nearly as it is",
        )
        for name in checkpoint.floats
        if name.removesuffix(".weight").endswith((*_PROJECTIONS, ".qkv_proj", ".gate_up_proj"))
    ]
    problems += [
        Problem(
            "not-buildable",
            f"ModelBuilder: the builder's loader of quantised weights does not know '{name}'",
            remedy="leave Rtn and Gptq out, and let ModelBuilder quantise this architecture itself (precision int4 or int8)",
        )
        for name in checkpoint.floats
        if not _PLACES.match(name)
    ][:1]
    if problems:
        raise InvalidRecipe(*problems)
