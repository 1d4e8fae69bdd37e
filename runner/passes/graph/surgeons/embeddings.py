"""Surgeons of the matrix that a language model reads twice: its embedding and, where the two are tied, its head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.passes.graph.surgeons.surgeon import IrSurgeon, Outcome, WeightsForbid

if TYPE_CHECKING:
    import onnx_ir as ir

    from runner.passes.graph.surgeons.editing import Array

# Quantising to 4 bits moves a matrix by about a tenth of its length; different matrices lie apart by more than their length.
_SAME_MATRIX = 0.3
_AT_ONCE = 8192  # rows compared at a time
_BLOCK = 32  # weights that share a scale in an 8-bit embedding
_INDICES = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Rows:
    """The rows of a vocabulary matrix [tokens, hidden], as a node reads them.

    Attributes:
        node: Gather or GatherBlockQuantized of an embedding, MatMul, Gemm or MatMulNBits of a head.
        weight: the initializer with numbers or codes.
        turned: it holds [hidden, tokens].
        scales: scales of codes; None where the weight holds numbers.
        zeros: codes of zero; None where that is the middle code.
    """

    node: ir.Node
    weight: ir.Value
    turned: bool
    scales: ir.Value | None = None
    zeros: ir.Value | None = None

    @property
    def bits(self) -> int:
        """Returns the bits of a code; 0 where the weight holds numbers."""
        if self.scales is None:
            return 0
        held = self.node.attributes.get("bits")
        return 4 if held is None else held.as_int()

    @property
    def shape(self) -> tuple[int, int]:
        """Returns (tokens, hidden)."""
        size = _content(self.weight).shape
        if self.scales is not None:
            columns = _content(self.scales).size // size[0] * self.node.attributes["block_size"].as_int()
            return int(size[0]), int(columns)
        return (int(size[1]), int(size[0])) if self.turned else (int(size[0]), int(size[1]))

    def numbers(self) -> Iterator[Array]:
        """Yields the matrix in float32, some rows at a time."""
        tokens, _ = self.shape
        for start in range(0, tokens, _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            if self.scales is not None:
                yield self._dequantised(rows)
            else:
                content = _content(self.weight)
                yield (content.T if self.turned else content)[rows].astype("float32")

    def _dequantised(self, rows: slice) -> Array:
        import torch

        from runner.models.quantized_checkpoint import QuantizedMatrix, Scheme

        tokens = self.shape[0]
        codes, scales, zeros = (
            None if value is None else _content(value).reshape(tokens, -1)[rows]
            for value in (self.weight, self.scales, self.zeros)
        )
        if codes is None or scales is None:
            raise ValueError("these rows hold numbers, not codes")
        matrix = QuantizedMatrix(
            Scheme(self.bits, self.node.attributes["block_size"].as_int(), symmetric=zeros is None),
            torch.from_numpy(codes.copy()),
            torch.from_numpy(scales.astype("float32")),
            None if zeros is None else torch.from_numpy(zeros.copy()),
        )
        numbers: Array = matrix.dequantized().numpy()
        return numbers

    def check(self) -> None:
        """Refuses codes in a form in which the one node cannot read what the other does.

        Raises:
            WeightsForbid: codes are no bytes, rows end inside a block, or a head has an order of groups or a bias.
        """
        if self.scales is None:
            return
        kinds = {value.dtype.name for value in (self.weight, self.zeros) if value is not None and value.dtype is not None}
        uneven = "K" in self.node.attributes and self.node.attributes["K"].as_int() != self.shape[1]
        further = self.node.op_type == "MatMulNBits" and any(value is not None for value in self.node.inputs[4:])
        if kinds != {"UINT8"} or uneven or further:
            why = (
                "its rows end inside a block"
                if uneven
                else "it has a group index or a bias"
                if further
                else f"it is of type {', '.join(sorted(kinds)).lower()}"
            )
            raise WeightsForbid("cannot-tie", f"the matrix of '{self.node.name}' cannot be read by another node: {why}")


class TieWordEmbeddings(IrSurgeon):
    """Lets the embedding and the head of a language model read one matrix where they hold the same one twice."""

    surgeon: Literal["TieWordEmbeddings"]

    def operate(self, model: ir.Model) -> Outcome:
        """Removes one of two equal matrices.

        In floating point the head becomes a Gemm with the rows of the embedding. A quantised head stays as it is, and the
        embedding looks its rows up in it, in 4 or 8 bits from then on.

        Raises:
            WeightsForbid: the two are different matrices.
        """
        found = _embedding_and_head(model)
        if isinstance(found, Outcome):
            return found
        embedding, head = found
        if embedding.scales is not None and head.scales is None:
            raise WeightsForbid(
                "cannot-tie",
                "the embedding is quantised and the head is not",
                "ShareEmbeddingLmHead quantises the head likewise",
            )
        if head.scales is None:
            _require(_equal(embedding, head))
            _multiply_by_rows(embedding, head)
            return Outcome(1)
        _require(_same_codes(embedding, head) if embedding.scales is not None else _distance(embedding, head) < _SAME_MATRIX)
        remark = None if embedding.scales is not None else f"the embedding reads the head's rows, in {head.bits} bits"
        _look_up_in_head(model, embedding, head)
        return Outcome(1, remark)


class QuantizeEmbeddingInt8(IrSurgeon):
    """Stores the embedding of a language model in 8 bits."""

    surgeon: Literal["QuantizeEmbeddingInt8"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces the Gather of a matrix by GatherBlockQuantized of its codes, in symmetric blocks of 32.

        Raises:
            WeightsForbid: the rows are no multiple of 32 long.
        """
        import torch

        from runner.models.quantized_checkpoint import Scheme
        from runner.passes.genai.shared_embedding import read_codes
        from runner.passes.graph.surgeons.editing import MICROSOFT, prune
        from runner.passes.quantize.grid import round_to_nearest

        embedding = _embedding(model)
        if embedding is None:
            return Outcome(0, "the graph has no embedding")
        if embedding.scales is not None:
            return Outcome(0, f"the embedding is quantised already, in {embedding.bits} bits")
        hidden = embedding.shape[1]
        if hidden % _BLOCK:
            raise WeightsForbid("uneven-blocks", f"rows of {hidden} weights cannot be cut into blocks of {_BLOCK}")
        matrix = torch.cat([torch.from_numpy(rows) for rows in embedding.numbers()])
        source = embedding.node.inputs[0]
        read_codes(model, embedding.node, round_to_nearest(matrix, Scheme(8, _BLOCK, symmetric=True)))
        model.opset_imports.setdefault(MICROSOFT, 1)
        prune(source.producer() if source is not None else None)
        _forget(embedding)
        return Outcome(1)


class ShareEmbeddingLmHead(IrSurgeon):
    """Lets the head of a language model multiply by the codes of its quantised embedding; QuantizeEmbeddingInt8 makes those."""

    surgeon: Literal["ShareEmbeddingLmHead"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces the head by a MatMulNBits that reads the embedding's codes.

        Raises:
            WeightsForbid: the two are different matrices.
        """
        from runner.passes.graph.surgeons.editing import MICROSOFT, Rewrite

        found = _embedding_and_head(model)
        if isinstance(found, Outcome):
            return found
        embedding, head = found
        if embedding.scales is None:
            return Outcome(0, "the embedding is not quantised; QuantizeEmbeddingInt8 does it")
        _require(_distance(embedding, head) < _SAME_MATRIX)
        tokens, hidden = embedding.shape
        size = embedding.node.attributes["block_size"].as_int()
        rewrite = Rewrite(head.node.outputs[0])
        blocks = rewrite.integers(tokens, hidden // size, size * embedding.bits // 8)
        level = {"accuracy_level": held.as_int()} if (held := head.node.attributes.get("accuracy_level")) is not None else {}
        product = rewrite.op(
            "MatMulNBits", head.node.inputs[0], rewrite.op("Reshape", embedding.weight, blocks), embedding.scales,
            *([embedding.zeros] if embedding.zeros is not None else []),
            domain=MICROSOFT, bits=embedding.bits, block_size=size, K=hidden, N=tokens, **level,
        )  # fmt: skip
        model.opset_imports.setdefault(MICROSOFT, 1)
        rewrite.finish(product)
        _forget(head)
        return Outcome(1, f"the head multiplies by the embedding's rows, in {embedding.bits} bits")


def _embedding_and_head(model: ir.Model) -> tuple[Rows, Rows] | Outcome:
    """Returns both; or that there is nothing to do: one is missing, or they read the same matrix already."""
    head = _head(model)
    embedding = _embedding(model) if head is not None else None
    if head is None or embedding is None:
        return Outcome(0, f"the graph has no {'head' if head is None else 'embedding'}")
    if embedding.weight is head.weight:
        return Outcome(0, "embedding and head read one matrix already")
    embedding.check()
    head.check()
    if embedding.shape != head.shape:
        raise WeightsForbid("cannot-tie", f"the embedding is {embedding.shape}, the head {head.shape}: they are not tied")
    return embedding, head


def _require(same: bool) -> None:
    if not same:
        raise WeightsForbid(
            "cannot-tie",
            "embedding and head are different matrices: sharing one would change what the model computes",
            "take this surgery out",
        )


def _embedding(model: ir.Model) -> Rows | None:
    """Returns the matrix whose rows the token ids choose."""
    for node in model.graph:
        if node.op_type in ("Gather", "GatherBlockQuantized") and _reads_token_ids(node.inputs[1]):
            rows = _rows(node, 0, [2, 3] if node.op_type == "GatherBlockQuantized" else [])
            if rows is not None:
                return rows
    return None


def _reads_token_ids(value: ir.Value | None) -> bool:
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "Identity", "Reshape", "Where", "Clip", "Squeeze", "Unsqueeze"):
            return False
        value = node.inputs[1 if node.op_type == "Where" else 0]
    return value is not None and value.name in _INDICES


def _head(model: ir.Model) -> Rows | None:
    """Returns the matrix behind the logits: scaling, capping and casts of them are followed back."""
    value = next((output for output in model.graph.outputs if output.name == "logits"), None)
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "MatMulNBits":
            return _rows(node, 1, [2, 3])
        if node.op_type in ("MatMul", "Gemm"):
            turned = node.attributes.get("transB")
            return _rows(node, 1, [], turned=turned is None or not turned.as_int())
        if node.op_type not in ("Cast", "Div", "Mul", "Tanh", "Identity", "Reshape", "Slice", "Add"):
            return None
        value = next(
            (one for one in node.inputs if one is not None and one.producer() is not None and not _is_constant(one)), None
        )
    return None


def _is_constant(value: ir.Value) -> bool:
    from runner.passes.graph.surgeons.editing import constant_of

    return constant_of(value) is not None


def _rows(node: ir.Node, at: int, parts: list[int], *, turned: bool = False) -> Rows | None:
    """Returns the matrix at an input of a node, followed back through Reshape and Transpose; None where it is no weight."""
    from runner.passes.graph.surgeons.editing import is_weight, producer

    value = node.inputs[at]
    while value is not None and (step := producer(value, "Reshape", "Transpose", "Identity")) is not None:
        turned ^= step.op_type == "Transpose"
        value = step.inputs[0]
    scales, zeros = ([node.inputs[part] if part < len(node.inputs) else None for part in parts] + [None, None])[:2]
    if value is None or not is_weight(value) or (not parts and len(_content(value).shape) != 2):
        return None
    return Rows(node, value, turned, scales, zeros)


def _content(value: ir.Value) -> Any:
    if value.const_value is None:
        raise ValueError(f"{value.name} is no weight")
    return value.const_value.numpy()


def _equal(one: Rows, other: Rows) -> bool:
    import numpy as np

    return all(np.array_equal(left, right) for left, right in zip(one.numbers(), other.numbers(), strict=True))


def _same_codes(one: Rows, other: Rows) -> bool:
    import numpy as np

    if one.bits != other.bits or one.node.attributes["block_size"].as_int() != other.node.attributes["block_size"].as_int():
        return False
    pairs = [(one.weight, other.weight), (one.scales, other.scales), (one.zeros, other.zeros)]
    return all(
        left is right
        or (left is not None and right is not None and np.array_equal(_content(left).ravel(), _content(right).ravel()))
        for left, right in pairs
    )


def _distance(one: Rows, other: Rows) -> float:
    """Returns how far two matrices lie apart, against the length of the first."""
    import numpy as np

    apart = length = 0.0
    for left, right in zip(one.numbers(), other.numbers(), strict=True):
        apart += float(np.square(left - right).sum())
        length += float(np.square(left).sum())
    return float((apart / length) ** 0.5) if length else 0.0


def _multiply_by_rows(embedding: Rows, head: Rows) -> None:
    """Writes the head as a Gemm with the embedding [tokens, hidden] as it lies: no transposed copy is made when loading."""
    from runner.passes.graph.surgeons.editing import Rewrite

    tokens, hidden = embedding.shape
    x = head.node.inputs[0]
    rows = embedding.node.inputs[0]
    rewrite = Rewrite(head.node.outputs[0])
    if head.node.op_type == "Gemm":
        rewrite.finish(rewrite.op("Gemm", x, rows, *head.node.inputs[2:], transB=1))
    else:
        flat = rewrite.op("Reshape", x, rewrite.integers(-1, hidden))
        product = rewrite.op("Gemm", flat, rows, transB=1)
        before = rewrite.op("Slice", rewrite.op("Shape", x), rewrite.integers(0), rewrite.integers(-1), rewrite.integers(0))
        rewrite.finish(rewrite.op("Reshape", product, rewrite.op("Concat", before, rewrite.integers(tokens), axis=0)))
    _forget(head)


def _look_up_in_head(model: ir.Model, embedding: Rows, head: Rows) -> None:
    from runner.passes.genai.shared_embedding import read_rows_of_head

    read_rows_of_head(model, embedding.node, head.node)
    _forget(embedding)


def _forget(rows: Rows) -> None:
    from runner.passes.graph.surgeons.editing import drop_if_unread

    for value in (rows.weight, rows.scales, rows.zeros):
        if value is not None:
            drop_if_unread(value)
