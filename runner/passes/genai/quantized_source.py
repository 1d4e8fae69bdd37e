"""Makes a checkpoint with quantised weights readable for onnxruntime-genai's builder.

Its loader of Olive's layout (0.18) takes fused projections apart and miscounts their packed zero points, asks for zero points
in attention even where a scheme has none, does not know a quantised embedding, and hands group sizes on that MatMulNBits does
not serve. The folder written here holds the same codes with zero points everywhere, groups cut to blocks that are served and
the embedding in floating point; `shared_embedding` brings its codes back. What stays as it is becomes links. Fused projections
do: `fused_read_apart` hands the loader the rows of each, where they lie. They are written apart for a release whose loader is
not known.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, Problem
from runner.models.quantized_checkpoint import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    QuantizedMatrix,
    pack,
    write_checkpoint,
)
from runner.models.sharded_weights import ShardedWeights, mapped_file, write_zeros
from runner.passes.genai.streamed_weights import unknown_releases

if TYPE_CHECKING:
    import torch

_PROJECTIONS = (".q_proj", ".k_proj", ".v_proj", ".o_proj", ".gate_proj", ".up_proj", ".down_proj")
_CODES = ("qweight", "scales", "qzeros")  # of a quantised projection, a row of it in each row
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
    fused = not unknown_releases()
    shards, matrices, unchanged = ShardedWeights(folder), {}, list(checkpoint.floats)
    for whole, matrix in checkpoint.matrices.items():
        if whole == EMBEDDING:
            continue
        before = {one.data_ptr(): key for key, one in matrix.tensors(whole).items()}
        apart = {} if fused else {name: matrix.view(*rows) for name, rows in _apart(whole, config).items()}
        for name, part in (apart or {whole: matrix}).items():
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
    made_of = replace(checkpoint, matrices=matrices, floats=floats)
    write_checkpoint(made_of, source, folder, shards, unchanged, (lambda _: True) if fused else None)
    if fused:
        _name_apart(folder / "config.json")


def _name_apart(path: Path) -> None:
    """Says in a configuration what it says of fused projections of those that they hold, by which the loader knows them."""
    config = json.loads(path.read_text(encoding="utf-8"))
    told = config["quantization_config"]
    overrides = told["overrides"] or {}
    told["overrides"] = {part: own for name, own in overrides.items() for part in _apart(name, config) or (name,)} or None
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


@contextmanager
def fused_read_apart() -> Iterator[None]:
    """Has the builder's loader read within the block what `write_for_builder` wrote; not in a release that is not known.

    The builder's modules must be importable by their own names, see `builder_call`.
    """
    if unknown_releases():
        yield
        return
    loader: Any = importlib.import_module("loaders.base")
    kept = loader.load_file
    loader.load_file = _read_apart
    try:
        yield
    finally:
        loader.load_file = kept


def _read_apart(file: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a file, mapped into memory, with the rows of fused projections under the names of each."""
    path = Path(file)
    config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    found: dict[str, torch.Tensor] = {}
    for name, tensor in mapped_file(path).items():
        above, _, kind = name.rpartition(".")
        parts = _apart(above, config) if kind in _CODES else {}
        found |= {f"{part}.{kind}": tensor[start:stop] for part, (start, stop) in parts.items()} or {name: tensor}
    return found


def _apart(name: str, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns the first row and the one behind the last of each projection that a fused one holds; nothing for another one."""
    above, _, last = name.rpartition(".")
    if last == "qkv_proj":
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        q, kv = heads * head, (config.get("num_key_value_heads") or heads) * head
        rows = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
    elif last == "gate_up_proj":
        inner = config["intermediate_size"]
        rows = {"gate_proj": (0, inner), "up_proj": (inner, 2 * inner)}
    else:
        return {}
    return {f"{above}.{part}": one for part, one in rows.items()}


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
