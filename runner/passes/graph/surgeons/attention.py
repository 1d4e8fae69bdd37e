"""Surgeons of attention: packed sequences, masks and rotary embeddings."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from runner.passes.graph.surgeons.surgeon import IrSurgeon, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir

    from runner.passes.graph.surgeons.editing import Array, Rewrite

_PACKED_DOMAIN, _PACKED = "custom", "PackedAttention"


class PackedAttentionToLoopMHA(IrSurgeon):
    """Writes custom::PackedAttention as a loop over the sequences, each through ONNX Runtime's MultiHeadAttention."""

    surgeon: Literal["PackedAttentionToLoopMHA"]

    def operate(self, model: ir.Model) -> Outcome:
        """Gives the operator a body and inlines it.

        It takes queries, keys and values [batch, heads, tokens, head size] and the sequences' cumulative lengths, and makes
        [batch, tokens, heads, head size].
        """
        from runner.passes.graph.surgeons.packed_attention import loop_over_sequences

        return _inline(model, loop_over_sequences)


class PackedAttentionToPackedMHA(IrSurgeon):
    """Writes custom::PackedAttention as ONNX Runtime's PackedMultiHeadAttention, which runs on CUDA only."""

    surgeon: Literal["PackedAttentionToPackedMHA"]

    def operate(self, model: ir.Model) -> Outcome:
        """Gives the operator a body and inlines it; the batch must be 1."""
        from runner.passes.graph.surgeons.packed_attention import packed_sequences

        return _inline(model, packed_sequences)


def _inline(model: ir.Model, body_of: Any) -> Outcome:
    from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

    from runner.passes.graph.surgeons.editing import nodes_of

    found = len(nodes_of(model, _PACKED, domain=_PACKED_DOMAIN))
    if not found:
        return Outcome(0)
    identifier = (_PACKED_DOMAIN, _PACKED, "")
    model.functions[identifier] = body_of(_PACKED_DOMAIN, _PACKED, model.opset_imports.get("", 20))
    InlinePass(criteria=lambda function: function.identifier() == identifier)(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    RemoveUnusedOpsetsPass()(model)
    return Outcome(found)


class ReplaceAttentionMaskValue(IrSurgeon):
    """Raises the very low numbers of attention masks, which stretch the range of a quantised tensor."""

    surgeon: Literal["ReplaceAttentionMaskValue"]
    threshold: float = Field(-3e30, description="lower numbers are replaced")
    replacement: float = Field(-1e4, description="number in their place")

    _READERS: ClassVar[frozenset[str]] = frozenset({"Add", "Mul", "Expand", "Where", "Shape"})

    def operate(self, model: ir.Model) -> Outcome:
        """Changes constants that nothing reads but Add, Mul, Expand, Where and Shape."""
        import onnx_ir as ir

        changes = 0
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None and (raised := self._raised(value, value.const_value)) is not None:
                    value.const_value = ir.tensor(raised, name=value.name)
                    changes += 1
        for node in model.graph.all_nodes():
            held = _constant_attribute(node)
            if held is not None and (raised := self._raised(node.outputs[0], held[1])) is not None:
                del node.attributes[held[0]]
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(raised))
                changes += 1
        return Outcome(changes)

    def _raised(self, value: ir.Value, content: ir.TensorProtocol) -> Array | None:
        """Returns the content with low numbers replaced; None where there are none, or where it is no mask."""
        import numpy as np

        if not content.dtype.is_floating_point() or any(node.op_type not in self._READERS for node in value.consumers()):
            return None
        numbers = content.numpy()
        low = numbers < self.threshold
        return np.where(low, np.asarray(self.replacement, numbers.dtype), numbers) if low.any() else None


def _constant_attribute(node: ir.Node) -> tuple[str, ir.TensorProtocol] | None:
    """Returns the name of the attribute that holds a Constant's or ConstantOfShape's numbers, and those."""
    import numpy as np
    import onnx_ir as ir

    if node.domain or node.op_type not in ("Constant", "ConstantOfShape"):
        return None
    for name, attribute in node.attributes.items():
        if name == "value":
            return name, attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return name, ir.tensor(np.asarray(attribute.value, np.float32))
    return None


class RemoveRopeMultiCache(IrSurgeon):
    """Fixes which of two rotary caches, for short and for long contexts, is used, where the graph chooses while it runs."""

    surgeon: Literal["RemoveRopeMultiCache"]
    use_large_cache: bool = Field(False, description="the cache for long contexts instead of the short one")

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every If between constant caches by the one or the other."""
        from runner.passes.graph.surgeons.editing import Rewrite, constant_of, nodes_of

        changes = 0
        for node in nodes_of(model, "If", domain=""):
            branches = [attribute.as_graph() for attribute in node.attributes.values()]
            if not all(_is_rotary_cache(output) for output in node.outputs):
                continue
            caches = [[constant_of(_origin(output)) for output in branch.outputs] for branch in branches]
            if any(cache is None or cache.ndim != 2 for branch in caches for cache in branch):
                continue
            chosen = sorted(caches, key=lambda branch: len(branch[0]))[-1 if self.use_large_cache else 0]  # type: ignore[arg-type]
            for output, cache in zip(list(node.outputs), chosen, strict=True):
                rewrite = Rewrite(output)
                rewrite.finish(rewrite.constant(cache, label="cache"))
            changes += 1
        return Outcome(changes)


def _is_rotary_cache(value: ir.Value) -> bool:
    """Says whether nothing but rotary embeddings read the value, as their cosines or sines."""
    places = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
    uses = value.uses()
    return bool(uses) and all(use.idx in places.get(use.node.op_type, ()) for use in uses)


def _origin(value: ir.Value) -> ir.Value:
    from runner.passes.graph.surgeons.editing import producer

    while (node := producer(value, "Identity")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


class AttentionMaskToSequenceLengths(IrSurgeon):
    """Feeds GroupQueryAttention its sequence lengths as inputs of the graph instead of attention_mask."""

    surgeon: Literal["AttentionMaskToSequenceLengths"]

    def operate(self, model: ir.Model) -> Outcome:
        """Adds the int32 inputs past_seq_len [batch, 1] and total_seq_len []; attention_mask goes where nothing reads it."""
        import onnx_ir as ir

        from runner.passes.graph.surgeons.editing import MICROSOFT, nodes_of, prune

        readers: dict[tuple[str, ir.Value], list[ir.Node]] = defaultdict(list)
        for node in nodes_of(model, "GroupQueryAttention", domain=MICROSOFT):
            for name, at in (("past_seq_len", 5), ("total_seq_len", 6)):
                value = node.inputs[at]
                if value is not None and not value.is_graph_input():
                    readers[name, value].append(node)
        if not readers:
            return Outcome(0)
        batch = next(
            (value.shape[0] for value in model.graph.inputs if value.name == "input_ids" and value.shape), "batch_size"
        )
        new = {
            name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
            for name, shape in (("past_seq_len", [batch, 1]), ("total_seq_len", []))
        }
        for (name, value), nodes in readers.items():
            for node in nodes:
                node.replace_input_with(5 if name == "past_seq_len" else 6, new[name])
            prune(value.producer())
        model.graph.inputs.extend(new.values())
        mask = next((value for value in model.graph.inputs if value.name == "attention_mask"), None)
        if mask is not None and not mask.uses():
            model.graph.inputs.remove(mask)
        return Outcome(sum(len(nodes) for nodes in readers.values()))


class DecomposeRotaryEmbedding(IrSurgeon):
    """Writes ONNX Runtime's RotaryEmbedding in standard operators."""

    surgeon: Literal["DecomposeRotaryEmbedding"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces those over [batch, heads, tokens, head size], or [batch, tokens, heads * head size] with num_heads given."""
        from runner.passes.graph.surgeons.editing import MICROSOFT, nodes_of

        found = nodes_of(model, "RotaryEmbedding", domain=MICROSOFT)
        changes = sum(_rotate(node) for node in found)
        left = len(found) - changes
        return Outcome(changes, f"{left} of unknown shape stay" if left else None)


def _rotate(node: ir.Node) -> bool:
    """Rotates by the angles of each token, as ONNX's RotaryEmbedding (opset 23) does; False where the shape is not known."""
    from runner.passes.graph.surgeons.editing import Rewrite

    x, positions, cosines, sines = node.inputs
    if x is None or positions is None or cosines is None or x.shape is None or cosines.shape is None:
        return False
    heads, half = _integer(node, "num_heads"), cosines.shape[1]
    if not isinstance(half, int) or positions.shape is None:
        return False
    rewrite = Rewrite(node.outputs[0])
    whole = len(x.shape) == 3
    tokens_at = 1 if whole else 2
    shape = rewrite.op("Shape", x)
    if whole:
        x = rewrite.op("Reshape", x, rewrite.integers(0, 0, *([heads, -1] if heads else [-1, 2 * half])))
    if len(positions.shape) == 1:
        positions = _count_from(rewrite, positions, rewrite.op("Gather", shape, rewrite.integers(tokens_at), axis=0))
    angles = [
        rewrite.op("Unsqueeze", rewrite.op("Gather", cache, positions, axis=0), rewrite.integers(3 - tokens_at))
        for cache in (cosines, sines)
    ]
    last, end = rewrite.integers(-1), rewrite.integers(2 * half)
    turned = rewrite.op("Slice", x, rewrite.integers(0), end, last)
    rest = rewrite.op("Slice", x, end, rewrite.integers(2**63 - 1), last)
    turned = _turn(rewrite, turned, angles, half, interleaved=bool(_integer(node, "interleaved")))
    rewrite.finish(rewrite.op("Reshape", rewrite.op("Concat", turned, rest, axis=-1), shape))
    return True


def _turn(rewrite: Rewrite, x: ir.Value, angles: list[ir.Value], half: int, *, interleaved: bool) -> ir.Value:
    """Rotates pairs of numbers: neighbours where interleaved, otherwise those of the two halves."""
    cosine, sine = angles
    last, first_end = rewrite.integers(-1), rewrite.integers(1 if interleaved else half)
    if interleaved:
        pairs = rewrite.op("Reshape", x, rewrite.integers(0, 0, 0, half, 2))
        cosine, sine = (rewrite.op("Unsqueeze", one, last) for one in (cosine, sine))
    else:
        pairs = x
    one = rewrite.op("Slice", pairs, rewrite.integers(0), first_end, last)
    other = rewrite.op("Slice", pairs, first_end, rewrite.integers(2**63 - 1), last)

    def times(left: ir.Value, right: ir.Value) -> ir.Value:
        product: ir.Value = rewrite.op("Mul", left, right)
        return product

    turned = rewrite.op(
        "Concat",
        rewrite.op("Sub", times(one, cosine), times(other, sine)),
        rewrite.op("Add", times(one, sine), times(other, cosine)),
        axis=-1,
    )
    flat: ir.Value = rewrite.op("Reshape", turned, rewrite.integers(0, 0, 0, 2 * half)) if interleaved else turned
    return flat


def _count_from(rewrite: Rewrite, start: ir.Value, length: ir.Value) -> ir.Value:
    """Returns positions [1, length] that count from `start` [1]."""
    scalar = rewrite.constant([], "int64")
    limit = rewrite.op("Add", start, length)
    count = rewrite.op(
        "Range", *(rewrite.op("Reshape", one, scalar) for one in (start, limit)), rewrite.constant(1, "int64", "step")
    )
    row: ir.Value = rewrite.op("Unsqueeze", count, rewrite.integers(0))
    return row


def _integer(node: ir.Node, name: str) -> int:
    held = node.attributes.get(name)
    return 0 if held is None else held.as_int()
