"""What memory allows: how fast it is read, and how much a token reads of it."""

from __future__ import annotations

from pathlib import Path

from performance.subject import CLOCKS
from runner.models.files import read_graph
from runner.models.generation import genai_config

_BYTES = 1 << 30
_READS = 12
_FP32 = 4


def read_bandwidth(threads: int, clock: str = "wall") -> float:
    """Returns bytes a second that `threads` threads together read: the best of a dozen sums over 1 GiB."""
    import torch

    now = CLOCKS[clock]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    numbers = torch.ones(_BYTES // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(_READS):
        started = now()
        numbers.sum()
        best = min(best, now() - started)
    torch.set_num_threads(before)
    return _BYTES / best


def bytes_a_token(folder: Path, context: int) -> tuple[int, int]:
    """Returns the bytes that a token reads: of weights in products, and of keys and values behind `context` tokens.

    Rows of an embedding that are looked up count for nothing, unless the head shares the matrix.
    """
    config = genai_config(folder)["model"]["decoder"]
    graph = read_graph(folder / config["filename"], weights=False).graph
    sizes = {tensor.name: _size(tensor) for tensor in graph.initializer}
    read = {name for node in graph.node if node.op_type not in ("Gather", "GatherBlockQuantized") for name in node.input}
    weights = sum(size for name, size in sizes.items() if name in read)
    cache = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_size"] * _FP32 * context
    return weights, cache


def block_sum_bytes(folder: Path) -> int:
    """Returns the bytes of sums that a token reads besides.

    ONNX Runtime keeps one in fp32 for each block of a matrix for 8-bit activations (accuracy level 4), beside
    the scale: `QuantBBlkSum` of MLAS' qnbitgemm.
    """
    from onnx import helper

    graph = read_graph(folder / genai_config(folder)["model"]["decoder"]["filename"], weights=False).graph
    blocks = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            blocks += told["N"] * -(-told["K"] // told["block_size"]) if told.get("accuracy_level") == 4 else 0
    return _FP32 * blocks


def _size(tensor: object) -> int:
    import math

    from onnx import helper

    bits = {"INT4": 4, "UINT4": 4}
    kind = tensor.data_type  # type: ignore[attr-defined]
    name = helper.tensor_dtype_to_string(kind).rpartition(".")[2]
    width = bits.get(name) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return math.prod(tensor.dims) * width // 8  # type: ignore[attr-defined]
