"""Attention with its projections inside, as ONNX Runtime fuses it, taken apart into projections and MultiHeadAttention.

On the CPU only MultiHeadAttention works on blocks (flash attention): the scores of all pairs of tokens are never held at once,
which are 1 GB for a picture of 512 x 512 pixels in Stable Diffusion. And the projections are MatMul, which quantisers know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

_MICROSOFT = "com.microsoft"
_KEPT = ("num_heads", "scale")  # of Attention's attributes; a node with others, or with a mask, is left alone
_PARTS = ("query", "key", "value")


def take_attention_apart(model: OnnxModel) -> int:
    """Replaces each Attention without a mask by three MatMul and MultiHeadAttention.

    Returns:
        how many were replaced.
    """
    weights = {one.name: one for one in model.model.graph.initializer}
    found = [node for node in model.model.graph.node if _can_be_taken_apart(node, weights)]
    for node in found:
        model.add_nodes(_parts_of(model, node, weights))
    model.remove_nodes(found)
    spent = {name for node in found for name in node.input[1:3]}
    listed = model.model.graph.initializer
    for at in reversed([at for at, one in enumerate(listed) if one.name in spent]):
        del listed[at]
    return len(found)


def _can_be_taken_apart(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    return (
        node.op_type == "Attention"
        and node.domain == _MICROSOFT
        and len(node.output) == 1
        and len(node.input) in (2, 3)
        and all(name in weights for name in node.input[1:])
        and all(one.name in _KEPT for one in node.attribute)
    )


def _parts_of(model: OnnxModel, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    import numpy as np
    from onnx import helper, numpy_helper

    made, outputs = [], []
    packed = numpy_helper.to_array(weights[node.input[1]])
    for part, weight in zip(_PARTS, np.split(packed, 3, axis=1), strict=True):
        name = f"{node.name}_{part}"
        model.add_initializer(numpy_helper.from_array(np.ascontiguousarray(weight), f"{name}_weight"))
        made.append(helper.make_node("MatMul", [node.input[0], f"{name}_weight"], [f"{name}_out"], name=name))
        outputs.append(f"{name}_out")
    weights[node.input[1]].ClearField("raw_data")
    if len(node.input) == 3 and (bias := numpy_helper.to_array(weights[node.input[2]])).any():
        outputs.append(f"{node.name}_bias")
        model.add_initializer(numpy_helper.from_array(bias, outputs[-1]))
    joined = helper.make_node("MultiHeadAttention", outputs, list(node.output), name=f"{node.name}_joined", domain=_MICROSOFT)
    joined.attribute.extend(node.attribute)
    return [*made, joined]
