"""Lets a graph look its embedding up in quantised rows: those of the head, or codes of its own.

onnxruntime-genai's builder (0.18) shares an embedding with a 4-bit head only and keeps one of fp32 beside an 8-bit head, which
is the larger part of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.models.quantized_checkpoint import Scheme
from runner.passes.quantize.grid import round_to_nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from runner.models.quantized_checkpoint import QuantizedMatrix

# Lets the embedding of a graph read codes; returns whether it did.
Share = Callable[["ir.Model"], bool]
GATHER, HEAD = "/model/embed_tokens/Gather", "/lm_head/MatMul"
_PREFIX = "model.embed_tokens"


def share_in(path: Path, share: Share) -> None:
    """Lets the graph at `path` read its embedding from codes, unless it does since it was written.

    Raises:
        RunFailed: it cannot.
    """
    import onnx_ir as ir

    model = ir.load(path)
    if not any(node.op_type == "GatherBlockQuantized" for node in model.graph) and share(model):
        _save(model, path)


def share_head(model: ir.Model) -> bool:
    """Replaces the embedding by the rows of the quantised head, and returns True.

    Raises:
        RunFailed: the graph has no quantised head or no embedding to replace.
    """
    gather = _gather(model)
    head = next((one for one in model.graph if one.op_type == "MatMulNBits" and (one.name or "").startswith(HEAD)), None)
    if head is None:
        raise RunFailed("no-quantised-head", "the graph has no quantised head that the embedding could share")
    read_rows_of_head(model, gather, head)
    return True


def share_codes(matrix: QuantizedMatrix, model: ir.Model) -> bool:
    """Replaces the embedding by codes, [vocabulary, columns], and returns True.

    Raises:
        RunFailed: the graph has no embedding to replace.
    """
    read_codes(model, _gather(model), matrix)
    return True


def share_nearest(scheme: Scheme, model: ir.Model) -> bool:
    """Replaces the embedding by the nearest codes; returns whether there is one of its own in floating point."""
    import torch

    gather = next((one for one in model.graph if one.name == GATHER and one.inputs[0].const_value is not None), None)
    if gather is None or not gather.inputs[0].dtype.is_floating_point():
        return False
    values = gather.inputs[0].const_value.numpy().astype("float32")
    read_codes(model, gather, round_to_nearest(torch.from_numpy(values), scheme))
    return True


def read_rows_of_head(model: ir.Model, gather: ir.Node, head: ir.Node) -> None:
    """Lets an embedding, a Gather or GatherBlockQuantized, read the codes of a MatMulNBits."""
    import numpy as np
    import onnx_ir as ir

    bits, rows = head.attributes["bits"].as_int(), head.attributes["N"].as_int()
    codes, *rest = [value for value in head.inputs[1:4] if value is not None]
    for value in rest:
        _shape_by_rows(value, rows)
    # in a node: the builder writes every initializer beside the graph, where ONNX Runtime looks for no shape
    by_rows = ir.tensor(np.array([rows, -1], np.int64), name=f"{_PREFIX}.shape")
    shape = ir.node("Constant", [], {"value": by_rows}, name="/model/embed_tokens/Shape")
    shape.outputs[0].name = by_rows.name
    reshape = ir.node("Reshape", [codes, shape.outputs[0]], name="/model/embed_tokens/Reshape")
    look_up(model, gather, [shape, reshape], [reshape.outputs[0], *rest], bits, head.attributes["block_size"].as_int())


def read_codes(model: ir.Model, gather: ir.Node, matrix: QuantizedMatrix) -> None:
    """Lets an embedding, the Gather of a matrix, read codes; scales take the type of what it puts out."""
    from runner.passes.graph.surgeons.editing import add_weight

    scales = next(value.dtype.numpy() for value in (gather.inputs[0], *gather.outputs) if value.dtype is not None)
    values = {"qweight": matrix.qweight.numpy(), "scales": matrix.scales.numpy().astype(scales)}
    if matrix.qzeros is not None:
        values["qzeros"] = matrix.qzeros.numpy()
    inputs = [add_weight(model.graph, f"{_PREFIX}.{name}", value) for name, value in values.items()]
    look_up(model, gather, [], inputs, matrix.scheme.bits, matrix.scheme.group_size)


def _gather(model: ir.Model) -> ir.Node:
    gather = next((one for one in model.graph if one.name == GATHER and one.inputs[0].is_initializer()), None)
    if gather is None:
        raise RunFailed("no-embedding", "the graph has no embedding that could be looked up in quantised rows")
    return gather


def look_up(model: ir.Model, gather: ir.Node, before: list[ir.Node], inputs: list[Any], bits: int, block_size: int) -> ir.Value:
    """Puts a GatherBlockQuantized, with nodes before it, in place of the Gather and drops the matrix that it read.

    Args:
        model: has the Gather.
        gather: the lookup.
        before: nodes that make the inputs.
        inputs: codes, scales and, where there are any, zero points.
        bits: of a code.
        block_size: codes that share a scale.

    Returns:
        What the new node gives.
    """
    import onnx_ir as ir

    matrix = gather.inputs[0]
    lookup = ir.node(
        "GatherBlockQuantized",
        [inputs[0], gather.inputs[1], *inputs[1:]],
        {"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1},
        domain="com.microsoft",
        name=f"{GATHER}BlockQuantized",
    )
    old, new = gather.outputs[0], lookup.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    model.graph.insert_before(gather, [*before, lookup])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(gather, safe=True)
    if matrix.is_initializer() and not matrix.uses():
        del model.graph.initializers[matrix.name]
    return new


def _shape_by_rows(value: ir.Value, rows: int) -> None:
    """Gives a flat initializer the rows that GatherBlockQuantized wants of it; MatMulNBits takes both."""
    import onnx_ir as ir

    flat = value.const_value
    if flat is None or len(flat.shape) == 2:
        return

    def by_rows() -> ir.TensorProtocol:
        return ir.tensor(flat.numpy().reshape(rows, -1), dtype=flat.dtype, name=value.name)

    if isinstance(flat, ir.LazyTensor):  # made when it is written
        shape = ir.Shape((rows, flat.size // rows))
        value.const_value = ir.LazyTensor(by_rows, dtype=flat.dtype, shape=shape, name=value.name)
    else:
        value.const_value = by_rows()
    value.shape = value.const_value.shape


def _save(model: ir.Model, path: Path) -> None:
    """Writes graph and weights anew, so that a matrix that nothing reads any more takes no room."""
    import onnx_ir as ir

    new = path.parent / "rewritten"
    new.mkdir()
    data = f"{path.name}.data"
    ir.save(model, new / path.name, external_data=data)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.release()
    for name in (path.name, data):
        (new / name).replace(path.parent / name)
    new.rmdir()
