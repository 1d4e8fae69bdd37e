"""Bodies of custom::PackedAttention: attention within each of several sequences that lie behind one another in one batch row.

Queries, keys and values are [batch, heads, tokens, head size], `lengths` [sequences + 1] holds where each sequence begins and
the last ends; the result is [batch, tokens, heads, head size].
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnxscript import script
from onnxscript.values import Opset

from runner.passes.graph.surgeons.editing import MICROSOFT


def loop_over_sequences(domain: str, name: str, opset: int) -> ir.Function:
    """Returns a body that runs MultiHeadAttention on one sequence after the other."""
    op, microsoft = Opset("", opset), Opset(MICROSOFT, 1)

    @script(opset=Opset(domain, 1))  # type: ignore[untyped-decorator]
    def attend(queries, keys, values, lengths, scale: float, num_heads: int):  # type: ignore[no-untyped-def]
        flat = op.Constant(value_ints=[0, 0, -1])
        first = op.Constant(value_ints=[0])
        tokens_axis = op.Constant(value_ints=[1])
        turned = op.Transpose(queries, perm=[0, 2, 1, 3])
        shape = op.Shape(turned)
        all_queries = op.Reshape(turned, flat)
        all_keys = op.Reshape(op.Transpose(keys, perm=[0, 2, 1, 3]), flat)
        all_values = op.Reshape(op.Transpose(values, perm=[0, 2, 1, 3]), flat)
        bounds = op.Cast(lengths, to=onnx.TensorProto.INT64)
        sequences = op.Size(bounds) - 1
        attended = op.Slice(all_values, first, first, tokens_axis)
        for number in range(sequences):
            at = op.Reshape(number, tokens_axis)
            start = op.Gather(bounds, at)
            end = op.Gather(bounds, at + 1)
            one = microsoft.MultiHeadAttention(
                op.Slice(all_queries, start, end, tokens_axis),
                op.Slice(all_keys, start, end, tokens_axis),
                op.Slice(all_values, start, end, tokens_axis),
                num_heads=num_heads,
                scale=scale,
            )
            attended = op.Concat(attended, one, axis=1)
        return op.Reshape(attended, shape)

    return _function(attend, domain, name)


def packed_sequences(domain: str, name: str, opset: int) -> ir.Function:
    """Returns a body that is one PackedMultiHeadAttention, for a batch of 1.

    The operator wants the places of all tokens in a padded matrix [sequences, longest]: those of tokens first, then those of
    padding.
    """
    op, microsoft = Opset("", opset), Opset(MICROSOFT, 1)

    @script(opset=Opset(domain, 1))  # type: ignore[untyped-decorator]
    def attend(queries, keys, values, lengths, scale: float, num_heads: int):  # type: ignore[no-untyped-def]
        bounds = op.Cast(lengths, to=onnx.TensorProto.INT32)
        starts = op.Slice(bounds, [0], [-1], [0])
        sizes = op.Slice(bounds, [1], [9223372036854775807], [0]) - starts
        longest = op.ReduceMax(sizes, keepdims=0)
        columns = op.Unsqueeze(
            op.Range(op.Cast(0, to=onnx.TensorProto.INT32), longest, op.Cast(1, to=onnx.TensorProto.INT32)), [0]
        )
        rows = op.Cast(op.Range(0, op.Size(sizes), 1), to=onnx.TensorProto.INT32)
        places = op.Unsqueeze(rows, [1]) * longest + columns
        is_token = op.Less(columns, op.Unsqueeze(sizes, [1]))
        is_padding = op.Not(is_token)
        order = op.Concat(
            op.Compress(places, op.Reshape(is_token, [-1])), op.Compress(places, op.Reshape(is_padding, [-1])), axis=0
        )
        offsets = op.Reshape(order, op.Shape(places))
        turned = op.Transpose(op.Squeeze(queries, [0]), perm=[1, 0, 2])
        packed = microsoft.PackedMultiHeadAttention(
            op.Reshape(turned, [0, -1]),
            op.Reshape(op.Transpose(op.Squeeze(keys, [0]), perm=[1, 0, 2]), [0, -1]),
            op.Reshape(op.Transpose(op.Squeeze(values, [0]), perm=[1, 0, 2]), [0, -1]),
            None,
            offsets,
            bounds,
            scale=scale,
            num_heads=num_heads,
        )
        return op.Unsqueeze(op.Reshape(packed, op.Shape(turned)), [0])

    return _function(attend, domain, name)


def _function(attend: object, domain: str, name: str) -> ir.Function:
    proto = attend.to_function_proto()  # type: ignore[attr-defined]
    proto.domain, proto.name = domain, name
    return ir.from_proto(proto)
