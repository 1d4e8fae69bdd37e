"""Makes a checkpoint with quantised weights readable for onnxruntime-genai's builder.

Its loader of Olive's layout (0.18) takes fused projections apart and miscounts their packed zero points, asks for zero points
in attention even where a scheme has none, and does not know a quantised embedding. The folder written here holds the same
codes with projections apart, zero points everywhere and the embedding in floating point; `shared_embedding` brings its codes
back.
"""

from __future__ import annotations

import json
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
    read_checkpoint,
    write_checkpoint,
)

_PROJECTIONS = (".q_proj", ".k_proj", ".v_proj", ".o_proj", ".gate_proj", ".up_proj", ".down_proj")


def write_for_builder(source: Path, folder: Path) -> Checkpoint:
    """Writes the checkpoint in `source` as the builder reads it and returns what it held.

    Raises:
        InvalidRecipe: parts of it are in floating point or differ in a way that the builder does not serve.
    """
    checkpoint = read_checkpoint(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    matrices = {
        name: _with_zeros(part)
        for whole, matrix in checkpoint.matrices.items()
        if whole != EMBEDDING
        for name, part in _apart(whole, matrix, config)
    }
    _check(checkpoint, matrices)
    floats = dict(checkpoint.floats)
    if f"{EMBEDDING}.weight" not in floats:
        embedding = checkpoint.matrices.get(EMBEDDING) or checkpoint.matrices[HEAD]
        floats[f"{EMBEDDING}.weight"] = embedding.dequantized()
    write_checkpoint(replace(checkpoint, matrices=matrices, floats=floats), source, folder)
    return checkpoint


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
        yield f"{above}.{part}", matrix.rows(start, stop)


def _with_zeros(matrix: QuantizedMatrix) -> QuantizedMatrix:
    if matrix.qzeros is not None:
        return matrix
    return replace(matrix, scheme=replace(matrix.scheme, symmetric=False), qzeros=pack(matrix.zeros(), matrix.scheme.bits))


def _check(checkpoint: Checkpoint, matrices: dict[str, QuantizedMatrix]) -> None:
    problems = []
    for name in checkpoint.floats:
        if name.removesuffix(".weight").endswith((*_PROJECTIONS, ".qkv_proj", ".gate_up_proj")):
            problems.append(f"{name.removesuffix('.weight')} is in floating point")
    for name, matrix in matrices.items():
        if name.endswith(".q_proj"):
            above = name.removesuffix("q_proj")
            if any(matrices[f"{above}{other}"].scheme != matrix.scheme for other in ("k_proj", "v_proj")):
                problems.append(f"the query, key and value projections of {above.rstrip('.')} are quantised differently")
    if problems:
        raise InvalidRecipe(
            *(Problem("not-buildable", f"ModelBuilder: {one}", remedy="quantise all of them alike") for one in problems)
        )
