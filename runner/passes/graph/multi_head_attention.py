"""Attention with its projections inside, as ONNX Runtime fuses it, taken apart into projections and MultiHeadAttention.

On the CPU only MultiHeadAttention works on blocks (flash attention): the scores of all pairs of tokens are never held at once,
which are 1 GB for a picture of 512 x 512 pixels in Stable Diffusion. And the projections are MatMul, which quantisers know.
On CUDA a mask of tokens sends either operator to kernels that hold all scores; as numbers added to the scores it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.passes.graph.float16 import is_half

if TYPE_CHECKING:
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

_MICROSOFT = "com.microsoft"
_KEPT = ("num_heads", "scale")  # of Attention's attributes; a node with others is left alone
_OF_MASKS = "mask_filter_value"  # what is added where a mask says 0
_PARTS = ("query", "key", "value")
_MASK, _MASK_OF_ATTENTION = 4, 3  # inputs of MultiHeadAttention, and of Attention
# Added to the score of a masked token, whose exponential is 0 then; half precision holds its sum with any score.
MASKED = -32768.0


def take_attention_apart(model: OnnxModel) -> int:
    """Replaces each Attention by three MatMul and MultiHeadAttention, where it has no mask or one for whole tokens.

    Masks of tokens [batch, tokens], of nodes that were MultiHeadAttention before as well, become numbers that are added to the
    scores, made once for all nodes.

    Returns:
        how many were replaced.
    """
    weights = {one.name: one for one in model.model.graph.initializer}
    masks = _Masks(model)
    found = [node for node in model.model.graph.node if _can_be_taken_apart(node, weights, masks)]
    for node in found:
        model.add_nodes(_parts_of(model, node, weights, masks))
    for node in model.model.graph.node:
        if node.op_type == "MultiHeadAttention" and node.domain == _MICROSOFT and _has_mask_alone(node, masks):
            _add_to_scores(node, masks.bias(node.input[_MASK]))
    model.remove_nodes(found)
    masks.finish()
    spent = {name for node in found for name in node.input[1:3]}
    listed = model.model.graph.initializer
    for at in reversed([at for at, one in enumerate(listed) if one.name in spent]):
        del listed[at]
    return len(found)


class _Masks:
    """The masks of tokens of a graph, and what is added to scores for each."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._made_by = model.output_name_to_node()
        self._type = "float16" if is_half(model.model) else "float32"
        self._inputs = {one.name: one.type.tensor_type for one in model.model.graph.input}
        self._biases: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def is_for_tokens(self, mask: str) -> bool:
        """Says whether a mask is an input [batch, tokens] of the graph."""
        while (node := self._made_by.get(mask)) is not None and node.op_type in ("Cast", "Identity"):
            mask = node.input[0]
        given = self._inputs.get(mask)
        return given is not None and len(given.shape.dim) == 2

    def bias(self, mask: str) -> str:
        """Returns the name of what is added to scores for a mask: [batch, 1, tokens, tokens]."""
        import numpy as np
        from onnx import TensorProto, helper

        if mask in self._biases:
            return self._biases[mask]
        name = f"{mask}_scores"
        keys, queries = np.array([0, 1, 1, -1]), np.array([0, 1, -1, 1])
        allowed, masked = np.array(0.0, self._type), np.array(MASKED, self._type)
        made: list[tuple[str, list[str]]] = [
            ("Reshape", [f"{name}_told", self._constant(f"{name}_keys_shape", keys)]),
            ("Reshape", [f"{name}_told", self._constant(f"{name}_queries_shape", queries)]),
            # False for every token that asks, so that the mask spreads over them without their number being computed.
            ("Xor", [f"{name}_Reshape_2", f"{name}_Reshape_2"]),
            ("Or", [f"{name}_Reshape_1", f"{name}_Xor_3"]),
            ("Where", [f"{name}_Or_4", self._constant(f"{name}_in", allowed), self._constant(f"{name}_out", masked)]),
        ]
        self._nodes.append(helper.make_node("Cast", [mask], [f"{name}_told"], name=f"{name}_Cast", to=TensorProto.BOOL))
        for at, (operator, inputs) in enumerate(made, 1):
            output = f"{name}_{operator}_{at}"
            self._nodes.append(helper.make_node(operator, inputs, [output], name=output))
        self._biases[mask] = output
        return output

    def finish(self) -> None:
        """Adds the nodes that make the biases to the graph."""
        self._model.add_nodes(self._nodes)

    def _constant(self, name: str, content: Any) -> str:
        from onnx import numpy_helper

        self._model.add_initializer(numpy_helper.from_array(content, name))
        return name


def _can_be_taken_apart(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], masks: _Masks) -> bool:
    if node.op_type != "Attention" or node.domain != _MICROSOFT or len(node.output) != 1:
        return False
    mask = node.input[_MASK_OF_ATTENTION] if len(node.input) > _MASK_OF_ATTENTION else ""
    kept = (*_KEPT, _OF_MASKS) if mask else _KEPT
    return (
        len(node.input) >= 2
        and all(name in weights for name in node.input[1:_MASK_OF_ATTENTION] if name)
        and not any(node.input[_MASK_OF_ATTENTION + 1 :])
        and (not mask or masks.is_for_tokens(mask))
        and all(one.name in kept for one in node.attribute)
    )


def _has_mask_alone(node: onnx.NodeProto, masks: _Masks) -> bool:
    """Says whether MultiHeadAttention of whole sequences reads a mask of tokens and nothing else that goes into the scores."""
    given = list(node.input)
    return (
        len(node.output) == 1
        and len(given) > _MASK
        and all(given[: len(_PARTS)])
        and bool(given[_MASK])
        and not any(given[_MASK + 1 :])
        and masks.is_for_tokens(given[_MASK])
    )


def _add_to_scores(node: onnx.NodeProto, bias: str) -> None:
    """Lets MultiHeadAttention add a bias to its scores in place of reading a mask."""
    kept = [one for one in node.attribute if one.name != _OF_MASKS]
    given = [*node.input[:_MASK], "", bias]
    del node.input[:]
    node.input.extend(given)
    del node.attribute[:]
    node.attribute.extend(kept)


def _parts_of(
    model: OnnxModel, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], masks: _Masks
) -> list[onnx.NodeProto]:
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
    given = [*node.input, "", ""]
    if given[2] and (bias := numpy_helper.to_array(weights[given[2]])).any():
        outputs.append(f"{node.name}_bias")
        model.add_initializer(numpy_helper.from_array(bias, outputs[-1]))
    joined = helper.make_node("MultiHeadAttention", outputs, list(node.output), name=f"{node.name}_joined", domain=_MICROSOFT)
    joined.attribute.extend(node.attribute)
    if given[_MASK_OF_ATTENTION]:
        joined.input.extend([""] * (_MASK - len(outputs)))
        _add_to_scores(joined, masks.bias(given[_MASK_OF_ATTENTION]))
    return [*made, joined]
