"""MatMulNBits of ONNX Runtime as operators of the ONNX standard: DequantizeLinear by blocks, and MatMul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.node_names import check_node_names, entries_of, meant
from runner.passes.graph.opset_version import at_least
from runner.passes.graph.scopes import Scope, bodies, constant, drop_unread

if TYPE_CHECKING:
    import numpy as np
    import onnx

_BLOCKS_SINCE = 21  # opset of DequantizeLinear by blocks and of 4-bit integers


class MatMulNBitsToQDQOptions(ExternalDataOptions):
    """Options of MatMulNBitsToQDQ."""

    use_transpose_op: bool = Field(
        False,
        description="keep the codes as they lie and turn them with a Transpose; otherwise they are stored turned, "
        "and ONNX Runtime's CPU provider computes the product in int8 when it loads the graph",
    )
    use_int4: bool = Field(False, description="store 4-bit codes as int4, not as uint4")
    use_signed_int: bool = Field(False, description="store codes as signed integers, of 8 bits as well")
    add_zero_point: bool = Field(False, description="give signed codes without zero points those of zero")
    nodes_to_exclude: list[str] | None = Field(None, description="MatMulNBits nodes to leave alone; a name or a pattern")


def _apply(model: ModelHandle, options: MatMulNBitsToQDQOptions, context: PassContext) -> ModelHandle:
    check_node_names(model, {"nodes_to_exclude": options.nodes_to_exclude}, context)

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        own = options.model_copy(update={"nodes_to_exclude": entries_of(name, options.nodes_to_exclude or ())})
        done, left = to_qdq(graph, own)
        context.say(f"{name}: {done} MatMulNBits became DequantizeLinear and MatMul" + (f"; {left} left alone" if left else ""))
        return at_least(graph, _BLOCKS_SINCE) if done else graph

    return rewrite_each(model, context, change, options.external_data())


def to_qdq(model: onnx.ModelProto, options: MatMulNBitsToQDQOptions) -> tuple[int, int]:
    """Rewrites the MatMulNBits of a graph in place; the graph needs opset 21 afterwards.

    Left alone are those excluded, and those that the standard cannot say: reordered columns, zero points between codes.

    Returns:
        How many were rewritten and how many were left.
    """
    work = _Rewriting(options)
    work.walk(model.graph, [])
    drop_unread(model.graph, work.replaced)
    return work.done, work.left


@dataclass(frozen=True)
class _Quantized:
    """A weight as MatMulNBits stores it, unpacked.

    Attributes:
        codes: uint8 [N, K].
        scales: of the graph's float type [N, blocks].
        zeros: uint8 [N, blocks]; None where zero is the middle of the codes.
        bits: of a code.
        block: columns that share a scale.
        owner: the graph that holds it.
        name: of its codes.
    """

    codes: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    zeros: np.ndarray[Any, Any] | None
    bits: int
    block: int
    owner: onnx.GraphProto
    name: str


@dataclass
class _Rewriting:
    """The state of a walk over a graph.

    Attributes:
        options: how the result looks.
        done: MatMulNBits rewritten.
        left: MatMulNBits left alone.
        stored: inputs of DequantizeLinear by what they were made from.
        replaced: names that were read before.
        seen: the graphs walked over, kept so that no other gets their identity.
    """

    options: MatMulNBitsToQDQOptions
    done: int = 0
    left: int = 0
    stored: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    seen: list[onnx.GraphProto] = field(default_factory=list)

    def walk(self, graph: onnx.GraphProto, outer: list[Scope]) -> None:
        scopes = [*outer, Scope.of(graph)]
        self.seen.append(graph)
        nodes: list[tuple[int, list[onnx.NodeProto]]] = []
        for at, node in enumerate(graph.node):
            for inner in bodies(node):
                self.walk(inner, scopes)
            if node.op_type != "MatMulNBits":
                continue
            new = self._rewritten(node, scopes)
            if new is None:
                self.left += 1
            else:
                nodes.append((at, new))
                self.done += 1
        for at, new in reversed(nodes):
            graph.node[at].CopyFrom(new[-1])
            for one in reversed(new[:-1]):
                graph.node.insert(at, one)

    def _rewritten(self, node: onnx.NodeProto, scopes: Sequence[Scope]) -> list[onnx.NodeProto] | None:
        """Returns the nodes in place of one; None where it stays."""
        import onnx

        if meant(node.name, self.options.nodes_to_exclude or ()):
            return None
        weight = _quantized(node, scopes)
        if weight is None:
            return None
        self.replaced |= set(node.input[1:5])
        stem = node.output[0]
        inputs = self._store(node, weight)
        by_axis = weight.scales.shape[1] == 1
        turned = self.options.use_transpose_op
        axis = int(turned) ^ int(by_axis)  # blocks lie along K; one scale a row lies along N
        grid = {} if by_axis else {"block_size": weight.block}
        matrix = f"{stem}_weight"
        nodes = [
            onnx.helper.make_node("DequantizeLinear", inputs, [matrix], f"{node.name}_DequantizeLinear", axis=axis, **grid)
        ]
        if turned:
            nodes.append(
                onnx.helper.make_node("Transpose", [matrix], [f"{matrix}_turned"], f"{node.name}_Transpose", perm=[1, 0])
            )
            matrix = f"{matrix}_turned"
        bias = node.input[5] if len(node.input) > 5 else ""
        product = f"{stem}_product" if bias else stem
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], matrix], [product], node.name))
        if bias:
            nodes.append(onnx.helper.make_node("Add", [product, bias], [stem], f"{node.name}_bias"))
        return nodes

    def _store(self, node: onnx.NodeProto, weight: _Quantized) -> list[str]:
        """Returns the names of the initializers that DequantizeLinear reads, which go where the weight came from."""
        key = (id(weight.owner), *node.input[1:4])
        if key not in self.stored:
            made = self._initializers(weight)
            weight.owner.initializer.extend(made)
            self.stored[key] = [tensor.name for tensor in made]
        return self.stored[key]

    def _initializers(self, weight: _Quantized) -> list[onnx.TensorProto]:
        import numpy as np
        import onnx

        signed = self.options.use_signed_int or (self.options.use_int4 and weight.bits == 4)
        middle = 2 ** (weight.bits - 1)
        zeros = weight.zeros
        if zeros is None and (self.options.add_zero_point or not signed):
            zeros = np.full(weight.scales.shape, middle, np.uint8)
        parts = {"codes": weight.codes, "scales": weight.scales}
        if zeros is not None and (self.options.add_zero_point or not signed or (zeros != middle).any()):
            parts["zeros"] = zeros
        made = []
        for part, array in parts.items():
            flat = array.ravel() if part != "codes" and array.shape[1] == 1 else array
            laid = flat if self.options.use_transpose_op else flat.T
            name = f"{weight.name}_qdq_{part}"
            if part == "scales":
                made.append(onnx.numpy_helper.from_array(np.ascontiguousarray(laid), name))
            else:
                made.append(_integers(name, laid.astype(np.int16) - middle if signed else laid, weight.bits, signed))
        return made


def _integers(name: str, values: np.ndarray[Any, Any], bits: int, signed: bool) -> onnx.TensorProto:
    """Returns a tensor of 4- or 8-bit integers; 2-bit codes take 4 bits, the narrowest type of opset 21."""
    import numpy as np
    import onnx

    kinds = onnx.TensorProto
    if bits == 8:
        kind = kinds.INT8 if signed else kinds.UINT8
        raw = values.astype(np.int8 if signed else np.uint8).tobytes()
    else:
        kind = kinds.INT4 if signed else kinds.UINT4
        codes = np.append(values.ravel(), np.zeros(values.size % 2, values.dtype)).astype(np.uint8) & 0x0F
        raw = (codes[::2] | codes[1::2] << 4).tobytes()
    return onnx.TensorProto(name=name, data_type=kind, dims=list(values.shape), raw_data=raw)


def _quantized(node: onnx.NodeProto, scopes: Sequence[Scope]) -> _Quantized | None:
    """Returns the weight of a MatMulNBits; None where it is not constant or the standard has no words for it."""
    import numpy as np
    import onnx

    settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    columns, rows, bits, block = settings["K"], settings["N"], settings.get("bits", 4), settings["block_size"]
    found = [constant(name, scopes) if name else None for name in (*node.input[1:5], "", "")[:4]]
    codes, scales, zeros, order = (None if one is None else onnx.numpy_helper.to_array(one[0]) for one in found)
    if codes is None or scales is None or found[0] is None or settings.get("weight_prepacked", 0):
        return None
    if any(name and part is None for name, part in zip(node.input[3:5], (zeros, order), strict=False)):
        return None
    if (zeros is not None and zeros.dtype != np.uint8) or not _in_order(order, columns, block):
        return None
    blocks = -(-columns // block)
    return _Quantized(
        _unpacked(codes.reshape(rows, -1), bits)[:, :columns],
        scales.reshape(rows, blocks),
        None if zeros is None else _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks],
        bits,
        block,
        found[0][1],
        node.input[1],
    )


def _in_order(order: np.ndarray[Any, Any] | None, columns: int, block: int) -> bool:
    import numpy as np

    return order is None or bool((order[:columns] == np.arange(columns) // block).all())


def _unpacked(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Returns codes, uint8 [rows, 8 / bits times the columns], from bytes whose lowest bits come first."""
    import numpy as np

    parts = [packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
    unpacked: np.ndarray[Any, Any] = np.stack(parts, -1).reshape(len(packed), -1)
    return unpacked


PASS = Pass(
    name="MatMulNBitsToQDQ",
    summary="Writes MatMulNBits as DequantizeLinear and MatMul of the ONNX standard.",
    options=MatMulNBitsToQDQOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnx", "onnxscript"),
)
