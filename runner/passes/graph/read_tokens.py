"""Work on tokens that nothing reads, left out.

Where a graph ends with one token of each input (a class token, the end of a text), the last layer's query, attention output and
feed-forward network are needed for that token alone; its keys and values for all of them. So the choice of the token moves up
through everything that treats tokens one by one, to the inputs of the last attention. The numbers stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from runner.passes.graph.surgeons.editing import MICROSOFT, Rewrite, constant_of, nodes_of, producer

if TYPE_CHECKING:
    from collections.abc import Iterator

_HIDDEN = 3  # dimensions of hidden states: batch, tokens, width
_TOKENS = 1  # their axis of tokens
_ALONE = {"Gelu", "Sigmoid", "Erf", "Tanh", "Relu", "Neg", "QuickGelu", "FastGelu", "BiasGelu", "Identity"}
_TOGETHER = {"Add", "Mul", "Sub", "Div"}
_BIAS = 5  # MultiHeadAttention's input that is added to the scores: [batch or 1, heads or 1, queries, keys]


def skip_unread_tokens(model: ir.Model) -> int:
    """Moves every choice of one token up. The attentions must be MultiHeadAttention, shapes must have been inferred.

    Returns:
        how many choices moved across an attention or a product with weights.
    """
    moved = 0
    for node in nodes_of(model, "Gather", "GatherND", domain=""):
        choice = _choice(node)
        if choice is not None and choice.worth_it():
            choice.move()
            moved += 1
    return moved


@dataclass
class _Choice:
    """One token of each input: by its place, the same for all (Gather), or by a place of each (GatherND)."""

    node: ir.Node
    hidden: ir.Value
    keeps_axis: bool
    above: set[ir.Node] = field(default_factory=set)
    chosen: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def worth_it(self) -> bool:
        """Says whether it moves across anything that takes time."""
        return any(node.op_type in ("MatMul", "MultiHeadAttention") for node in self.above)

    def move(self) -> None:
        """Writes what it moves across for the chosen token."""
        rewrite = Rewrite(self.node.outputs[0])
        new = self._of(self.hidden, rewrite)
        rewrite.finish(new if self.keeps_axis else rewrite.op("Squeeze", new, rewrite.integers(_TOKENS)))

    def _of(self, value: ir.Value, rewrite: Rewrite) -> ir.Value:
        """Returns the chosen token of hidden states, [batch, 1, width]."""
        if value not in self.chosen:
            node = value.producer()
            inside = node is not None and node in self.above
            self.chosen[value] = self._again(node, rewrite) if inside and node else self._taken(value, rewrite)
        return self.chosen[value]

    def _again(self, node: ir.Node, rewrite: Rewrite) -> ir.Value:
        given = list(node.inputs)
        for at in _chosen_inputs(node):
            one = given[at]
            assert one is not None
            given[at] = self._of(one, rewrite)
        if node.op_type == "MultiHeadAttention" and len(given) > _BIAS and given[_BIAS] is not None:
            given[_BIAS] = self._of_scores(given[_BIAS], rewrite)
        made = rewrite.op(node.op_type, *given, domain=node.domain)
        new = made.producer()
        assert new is not None
        new.attributes.update(node.attributes)
        new.name = node.name
        return made

    def _taken(self, value: ir.Value, rewrite: Rewrite) -> ir.Value:
        if self.node.op_type == "GatherND":
            return rewrite.op("Unsqueeze", rewrite.op("GatherND", value, self.node.inputs[1]), rewrite.integers(_TOKENS))
        return rewrite.op("Gather", value, self._place(rewrite), axis=_TOKENS)

    def _of_scores(self, bias: ir.Value, rewrite: Rewrite) -> ir.Value:
        """Returns the chosen token's row of what is added to the scores."""
        if self.node.op_type == "GatherND":
            flat = rewrite.op("Squeeze", bias, rewrite.integers(1))
            return rewrite.op("Unsqueeze", rewrite.op("GatherND", flat, self.node.inputs[1]), rewrite.integers(1, 2))
        return rewrite.op("Gather", bias, self._place(rewrite), axis=2)

    def _place(self, rewrite: Rewrite) -> ir.Value:
        place = constant_of(self.node.inputs[1])
        assert place is not None
        return rewrite.integers(int(place.reshape(-1)[0]))


def _choice(node: ir.Node) -> _Choice | None:
    """Returns what a node chooses, and the nodes that it can move across; None where it is no choice of one token."""
    hidden, places = node.inputs[0], node.inputs[1]
    if hidden is None or places is None or hidden.shape is None or len(hidden.shape) != _HIDDEN:
        return None
    if node.op_type == "Gather":
        place, axis = constant_of(places), node.attributes.get("axis")
        if place is None or place.size != 1 or axis is None or axis.as_int() != _TOKENS or place.ndim > 1:
            return None
        return _across(_Choice(node, hidden, keeps_axis=place.ndim == 1))
    batches = node.attributes.get("batch_dims")
    if places.shape is None or len(places.shape) != 2 or places.shape[1] != 2 or (batches is not None and batches.as_int()):
        return None
    return _across(_Choice(node, hidden, keeps_axis=False)) if _each_row_once(places) else None


def _each_row_once(places: ir.Value) -> bool:
    """Says whether pairs of (row, token) name the rows in order: 0, 1, 2 and so on."""
    joined = producer(places, "Concat")
    rows = producer(joined.inputs[0], "Unsqueeze", "Reshape") if joined is not None else None
    count = producer(rows.inputs[0], "Range") if rows is not None else None
    if count is None:
        return False
    start, step = constant_of(count.inputs[0]), constant_of(count.inputs[2])
    return start is not None and step is not None and int(start) == 0 and int(step) == 1


def _across(choice: _Choice) -> _Choice:
    """Finds the nodes whose outputs are read by nothing but the choice, and that treat every token by itself."""
    grown = True
    while grown:
        joining = [one for one in _next_above(choice) if _moves(one, choice)]
        choice.above.update(joining)
        grown = bool(joining)
    return choice


def _next_above(choice: _Choice) -> Iterator[ir.Node]:
    """Yields the nodes that make what the choice, or a node that it moves across, reads."""
    values = [choice.hidden, *(node.inputs[at] for node in choice.above for at in _chosen_inputs(node))]
    for value in dict.fromkeys(values):
        node = value.producer() if value is not None else None
        if node is not None and node not in choice.above:
            yield node


def _moves(node: ir.Node, choice: _Choice) -> bool:
    output = node.outputs[0]
    readers = [(use.node, use.idx) for use in output.uses()]
    inside = all(
        (reader is choice.node and at == 0) or (reader in choice.above and at in _chosen_inputs(reader))
        for reader, at in readers
    )
    further = any(one.uses() or one.is_graph_output() for one in node.outputs[1:])
    hidden = output.shape is not None and len(output.shape) == _HIDDEN
    if not inside or further or not hidden or output.is_graph_output() or not _chosen_inputs(node):
        return False
    return node.op_type != "MultiHeadAttention" or _scores_can_be_chosen(node, choice)


def _scores_can_be_chosen(node: ir.Node, choice: _Choice) -> bool:
    """A token's row of the scores: of what is added to them, not of a mask of keys, nor of one that the operator makes."""
    causal = node.attributes.get("unidirectional")
    if (causal is not None and causal.as_int()) or any(
        one is not None for one in (*node.inputs[3:_BIAS], *node.inputs[_BIAS + 1 :])
    ):
        return False
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    if bias is None or choice.node.op_type == "Gather":
        return True
    query = node.inputs[0]
    shapes = bias.shape is not None and query is not None and query.shape is not None
    return bool(shapes and bias.shape[1] == 1 and str(bias.shape[0]) == str(query.shape[0]))


def _chosen_inputs(node: ir.Node) -> tuple[int, ...]:
    """Returns which inputs are hidden states of the same tokens as the output; none where tokens are not by themselves."""
    hidden = tuple(
        at for at, one in enumerate(node.inputs) if one is not None and one.shape is not None and len(one.shape) == _HIDDEN
    )
    if node.op_type in _ALONE and node.domain in ("", MICROSOFT):
        return hidden[:1] if 0 in hidden else ()
    if node.op_type == "LayerNormalization" and not node.domain:
        axis = node.attributes.get("axis")
        return (0,) if 0 in hidden and (axis is None or axis.as_int() in (-1, _HIDDEN - 1)) else ()
    if node.op_type == "MatMul" and not node.domain:
        return (0,) if 0 in hidden and _constant_dimensions(node.inputs[1]) == 2 else ()
    if node.op_type in _TOGETHER and not node.domain:
        return _of_elementwise(node, hidden)
    return (0,) if node.op_type == "MultiHeadAttention" and node.domain == MICROSOFT and 0 in hidden else ()


def _of_elementwise(node: ir.Node, hidden: tuple[int, ...]) -> tuple[int, ...]:
    """Both sides, or one beside numbers that are the same for every token; an axis of tokens must not be spread."""
    if len(hidden) == 2:
        first, second = (one.shape for one in node.inputs if one is not None and one.shape is not None)
        same = str(first[0]) == str(second[0]) and str(first[_TOKENS]) == str(second[_TOKENS])
        return hidden if same and _is_known(first[_TOKENS]) else ()
    return hidden if len(hidden) == 1 and _constant_dimensions(node.inputs[1 - hidden[0]]) in (0, 1) else ()


def _is_known(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, int) or size.value is not None


def _constant_dimensions(value: ir.Value | None) -> int | None:
    """Returns how many dimensions a constant has; None for what is none. Reads no content."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else len(tensor.shape)
