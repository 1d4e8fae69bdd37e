"""Block-wise quantisation of the weights in an ONNX graph: MatMulNBits and GatherBlockQuantized of ONNX Runtime.

The algorithms differ only in how they fit the grid of a block; `quantize_weights` finds the weights, in subgraphs as well, and
puts the operators in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from runner.models.external_weights import values_of
from runner.models.handle import ModelHandle
from runner.models.mapped_weights import give_back
from runner.models.quantized_checkpoint import WHOLE_ROW, Scheme, pack
from runner.passes.declaration import PassContext
from runner.passes.each_graph import rewrite_each_weight
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.node_names import check_node_names, entries_of, meant
from runner.passes.graph.scopes import Scope, bodies, constant, drop_unread, maker
from runner.passes.quantize.grid import Fit, Parts, codes_on_grids, over_rows

if TYPE_CHECKING:
    import onnx
    import torch

    from runner.passes.each_graph import Put

BlockSize = Literal[16, 32, 64, 128, 256]
WeightBits = Literal[2, 4, 8]


@dataclass(frozen=True)
class Matrix:
    """A weight to quantise.

    Attributes:
        rows: float32 [outputs of a product or entries of a table, columns]; zeros fill the last block.
        columns: how many columns hold weights.
        scheme: how it is quantised.
        kept: the float type that its scales are stored in.
        reader: name of the value that it is multiplied with.
    """

    rows: torch.Tensor
    columns: int
    scheme: Scheme
    kept: torch.dtype
    reader: str


# Returns codes uint8 [rows, columns], scales and zeros [rows, blocks].
Solve = Callable[[Matrix], Parts]


def nearest(fit: Fit) -> Solve:
    """Returns the solution that takes the code nearest to each weight, on grids that `fit` finds for a few rows at a time."""

    def solve(matrix: Matrix) -> Parts:
        def fitted(some: torch.Tensor) -> Parts:
            return codes_on_grids(fit, some, matrix.scheme, matrix.columns, matrix.kept)

        return over_rows(fitted, matrix.rows)

    return solve


_MICROSOFT = "com.microsoft"
_INT8_COMPUTE = 4
_SMALLEST_BLOCK = 16


class BlockOptions(ExternalDataOptions):
    """What the block-wise passes have in common."""

    accuracy_level: Literal[0, 1, 2, 3, 4] | None = Field(
        None,
        description="what a product is computed in: 1 fp32, 2 fp16, 3 bf16, 4 int8, 0 as the kernel likes; "
        "when not given, 4 for the CPU, whose kernel is fastest so, and 0 elsewhere",
    )
    nodes_to_exclude: list[str] | None = Field(
        None, description="nodes to leave alone; a name or a pattern such as */lm_head/*"
    )

    retired: ClassVar[Mapping[str, str]] = {
        "axis": "blocks lie along the inner dimension of a product; its kernels know no other",
    }

    def level(self, target: str) -> int:
        """Returns the accuracy level for a target."""
        if self.accuracy_level is not None:
            return self.accuracy_level
        return _INT8_COMPUTE if target == "cpu" else 0


@dataclass(frozen=True)
class Blocks:
    """What is quantised, and how.

    Attributes:
        solve: finds codes, scales and zeros.
        scheme: bits, block size and symmetry of most weights; a group size of -1 takes all columns of a product as one block.
        operators: types whose weights are quantised: MatMul (Gemm counts as such) and Gather.
        level: accuracy level of the products; 0 leaves it open.
        named: the nodes that are quantised, by name or pattern; all when empty.
        excluded: nodes that are not, likewise.
        own: schemes of single nodes, by name or pattern; the first that means a node holds.
    """

    solve: Solve
    scheme: Scheme
    operators: tuple[str, ...]
    level: int
    named: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    own: Mapping[str, Scheme] = field(default_factory=dict)

    def of_graph(self, name: str) -> Blocks | None:
        """Returns what holds for the graph of that file name; None where nothing in it is named."""
        named = tuple(entries_of(name, self.named))
        if self.named and not named:
            return None
        own = {one: scheme for entry, scheme in self.own.items() for one in entries_of(name, [entry])}
        return replace(self, named=named, excluded=tuple(entries_of(name, self.excluded)), own=own)

    def scheme_of(self, node: onnx.NodeProto) -> Scheme | None:
        """Returns how the weight of a node is quantised; None where it stays as it is."""
        kind = "MatMul" if node.op_type == "Gemm" else node.op_type
        if node.domain or kind not in self.operators or meant(node.name, self.excluded):
            return None
        if self.named and not meant(node.name, self.named):
            return None
        return next((own for entry, own in self.own.items() if meant(node.name, [entry])), self.scheme)


def quantize_blocks(model: ModelHandle, blocks: Blocks, options: BlockOptions, context: PassContext) -> ModelHandle:
    """Quantises the weights of every graph of an `onnx` or `genai` model.

    Raises:
        InvalidRecipe: an option names a node that no graph has.
    """
    import torch

    torch.set_num_threads(context.threads)
    asked = {"nodes_to_include": blocks.named, "nodes_to_exclude": blocks.excluded, "customized_weight_config": blocks.own}
    check_node_names(model, asked, context)

    total: Counter[str] = Counter()

    def change(graph: onnx.ModelProto, name: str, put: Put) -> None:
        own = blocks.of_graph(name)
        done = quantize_weights(graph, own, put) if own else Counter()
        total.update(done)
        context.say(f"{name}: {_told(done)}")

    made = rewrite_each_weight(model, context, change, options.external_data())
    return made.with_attributes(precision=f"int{blocks.scheme.bits}") if total.total() else made


def _told(done: Counter[str]) -> str:
    products, lookups = done["MatMulNBits"], done["GatherBlockQuantized"]
    found = f"{products} products" + (f" and {lookups} embeddings" if lookups else "")
    return f"quantised the weights of {found}" if done else "holds no weight to quantise"


# --- the graph -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """A matrix that a node multiplies with or looks up in.

    Attributes:
        name: the value's; the tensor that a Constant holds may have none.
        tensor: where its values are.
        owner: the graph that its quantised form is stored in: the one that it comes from.
        turned: the rows that are quantised are its columns.
        factor: what its values are multiplied with.
    """

    name: str
    tensor: onnx.TensorProto
    owner: onnx.GraphProto
    turned: bool
    factor: float = 1.0

    def rows(self) -> torch.Tensor:
        """Returns the rows that are quantised, float32 [outputs of a product or entries of a table, columns]."""
        import torch

        matrix = torch.from_numpy(values_of(self.tensor).astype("float32", copy=False))
        turned = matrix.T.contiguous() if self.turned else matrix
        return turned if self.factor == 1 else turned * self.factor


def quantize_weights(model: onnx.ModelProto, blocks: Blocks, put: Put = lambda _: None) -> Counter[str]:
    """Quantises the weights of a graph in place.

    Products with a weight of two dimensions become MatMulNBits, whether it comes directly, through a Transpose or in a Gemm;
    lookups along the first axis become GatherBlockQuantized. A weight that several nodes share is stored once for each way in
    which it is read; one that nothing reads any more is dropped.

    Args:
        model: a graph with its weights, or one of `read_in_place`.
        blocks: what is quantised, and how.
        put: takes the values of each new tensor out of the graph.

    Returns:
        How many nodes of which type there are new.
    """
    import onnx

    work = _Work(blocks, put)
    work.walk(model.graph, [])
    if work.done and all(entry.domain != _MICROSOFT for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_MICROSOFT, 1))
    drop_unread(model.graph, work.replaced)
    return work.done


@dataclass
class _Work:
    """The state of a walk over a graph.

    Attributes:
        blocks: what is quantised.
        put: takes the values of a new tensor out of the graph.
        done: new nodes by type.
        stored: names of quantised tensors by where their weight is and how it is read.
        replaced: names of the values that quantised nodes read before.
        seen: the graphs walked over, kept so that no other gets their identity.
    """

    blocks: Blocks
    put: Put
    done: Counter[str] = field(default_factory=Counter)
    stored: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    seen: list[onnx.GraphProto] = field(default_factory=list)

    def walk(self, graph: onnx.GraphProto, outer: list[Scope]) -> None:
        scopes = [*outer, Scope.of(graph)]
        self.seen.append(graph)
        sums = []
        for at, node in enumerate(graph.node):
            for inner in bodies(node):
                self.walk(inner, scopes)
            scheme = self.blocks.scheme_of(node)
            weight = _weight_of(node, scopes) if scheme else None
            if scheme is None or weight is None:
                continue
            bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
            if node.op_type == "Gather":
                self._look_up(node, weight, scheme)
            else:
                self._multiply(node, weight, scheme)
            if bias:
                sums.append((at, _add_bias(node, bias)))
        for at, addition in reversed(sums):
            graph.node.insert(at + 1, addition)

    def _multiply(self, node: onnx.NodeProto, weight: _Weight, scheme: Scheme) -> None:
        columns, rows = weight.tensor.dims if weight.turned else reversed(weight.tensor.dims)
        if scheme.group_size == WHOLE_ROW:
            scheme = replace(scheme, group_size=max(_SMALLEST_BLOCK, 1 << (columns - 1).bit_length()))
        named = self._store(weight, scheme, "MatMulNBits", node.input[0])
        level = {"accuracy_level": self.blocks.level} if self.blocks.level else {}
        attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.group_size, **level}
        self._become(node, "MatMulNBits", [node.input[0], *named], attributes)

    def _look_up(self, node: onnx.NodeProto, weight: _Weight, scheme: Scheme) -> None:
        codes, *rest = self._store(weight, scheme, "GatherBlockQuantized", node.input[1])
        attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": scheme.bits, "block_size": scheme.group_size}
        self._become(node, "GatherBlockQuantized", [codes, node.input[1], *rest], attributes)

    def _become(self, node: onnx.NodeProto, kind: str, inputs: list[str], attributes: Mapping[str, int]) -> None:
        import onnx

        self.replaced |= set(node.input) - set(inputs)
        name = f"{node.name}_Q{attributes['bits']}" if node.name else ""
        new = onnx.helper.make_node(kind, inputs, list(node.output), name, domain=_MICROSOFT, **attributes)
        node.CopyFrom(new)
        self.done[kind] += 1

    def _store(self, weight: _Weight, scheme: Scheme, kind: str, reader: str) -> list[str]:
        """Returns the names of the quantised tensors of a weight, which go into the graph that it comes from."""
        key = (id(weight.owner), weight.name, weight.turned, weight.factor, scheme, kind)
        if key not in self.stored:
            self.stored[key] = self._quantize(weight, scheme, kind, reader)
        return self.stored[key]

    def _quantize(self, weight: _Weight, scheme: Scheme, kind: str, reader: str) -> list[str]:
        import onnx
        import torch

        rows = weight.rows()
        columns, size = rows.shape[1], scheme.group_size
        halves = {onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16}
        kept = halves.get(weight.tensor.data_type, torch.float32)
        padded = torch.nn.functional.pad(rows, (0, -columns % size)) if columns % size else rows
        codes, scales, zeros = self.blocks.solve(Matrix(padded, columns, scheme, kept, reader))
        give_back(rows)
        shape = (len(rows), -1, size * scheme.bits // 8)
        packed = pack(codes, scheme.bits).view(shape) if kind == "MatMulNBits" else pack(codes[:, :columns], scheme.bits)
        number = len(self.stored)
        prefix = f"{weight.name}_Q{scheme.bits}"
        parts = {"": packed, "_scales": scales.to(kept)}
        if not scheme.symmetric:
            parts["_zero_points"] = pack(zeros.byte(), scheme.bits)
        made = [_tensor(f"{prefix}{part}_{number}", value, weight.tensor.data_type) for part, value in parts.items()]
        for tensor in made:
            self.put(tensor)
        weight.owner.initializer.extend(made)
        return [tensor.name for tensor in made]


def _tensor(name: str, value: torch.Tensor, float_type: int) -> onnx.TensorProto:
    import onnx
    import torch

    kind = onnx.TensorProto.UINT8 if value.dtype == torch.uint8 else float_type
    raw = value.contiguous().view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, data_type=kind, dims=list(value.shape), raw_data=raw)


def _weight_of(node: onnx.NodeProto, scopes: list[Scope]) -> _Weight | None:
    """Returns the weight of a MatMul, Gemm or Gather that can be quantised, None where there is none."""
    import onnx

    settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Gather":
        found = _matrix(node.input[0], scopes)
        if found is None or settings.get("axis", 0) != 0 or found[0].dims[1] % 8:
            return None
        return _Weight(node.input[0], *found, turned=False)
    turned, factor = True, 1.0
    if node.op_type == "Gemm":
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if settings.get("transA", 0) or (has_bias and settings.get("beta", 1.0) != 1.0):
            return None
        turned, factor = not settings.get("transB", 0), settings.get("alpha", 1.0)
    name = node.input[1]
    made = maker(name, scopes)
    if made is not None and made.op_type == "Transpose" and not (made.attribute and list(made.attribute[0].ints) == [0, 1]):
        name, turned = made.input[0], not turned
    found = _matrix(name, scopes)
    return None if found is None else _Weight(name, *found, turned, factor)


def _matrix(name: str, scopes: list[Scope]) -> tuple[onnx.TensorProto, onnx.GraphProto] | None:
    """Returns the matrix of that name and the graph that it belongs to; None for anything else."""
    import onnx

    found = constant(name, scopes)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if found is None or len(found[0].dims) != 2 or found[0].data_type not in floats or not all(found[0].dims):
        return None
    return found


def _add_bias(product: onnx.NodeProto, bias: str) -> onnx.NodeProto:
    """Returns the Add that gives what the Gemm gave, and lets the product give what goes into it."""
    import onnx

    result = product.output[0]
    product.output[0] = f"{result}_product"
    return onnx.helper.make_node("Add", [product.output[0], bias], [result], f"{product.name}_bias" if product.name else "")
