"""Lets onnxruntime-genai's builder quantise each weight while it is written, so that memory does not grow with the model.

The builder (0.18) hands its whole graph, all weights in fp32, as one proto to ONNX Runtime's MatMulNBitsQuantizer. Here a graph
gets its MatMulNBits nodes first, and their tensors are made when the file is written, a few rows of the memory-mapped
checkpoint at a time; the pages that were read are given back. What the first rows of a weight become is asked of
MatMulNBitsQuantizer itself: names, attributes and values. A method that is computed here must give the same bits for them.
Where it does not, and for methods that are not computed here, MatMulNBitsQuantizer gets all rows. HQQ, whose zeros ONNX Runtime
keeps in floating point, has the names and attributes of MatMulNBitsQuantizer's rounding, and values of our own.

Codes that a checkpoint brings stay in its files until they are written. Where a run does not need the checkpoint on, the disk
space of what was read is given back as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.models.mapped_weights import give_back
from runner.models.quantized_checkpoint import EMBEDDING, Scheme
from runner.models.spent_files import Inode, spend
from runner.passes.genai.lazy_weights import ASKED_ROWS, Below, Columns, Line, Rows, float_tensor, stored_tensor
from runner.passes.genai.quantised_product import Product, codes_of_lookup
from runner.passes.genai.shared_embedding import GATHER, Share, look_up
from runner.targets.target import installed_wheels

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

SERVED = ("0.18",)  # releases of onnxruntime-genai whose builder this was written for and tested with


@dataclass(frozen=True)
class _Packed:
    """Several products with one input, as the builder passes a product around."""

    weight: Rows


@dataclass(frozen=True)
class _PackedCodes:
    """Several quantised products with one input, as the builder passes a quantised product around."""

    qweight: Below
    scales: Below
    qzeros: Below
    g_idx: Any
    in_features: int
    out_features: int
    bits: int
    group_size: int


@contextmanager
def streamed(
    builder: Any,
    threads: int,
    lookup: Scheme | None = None,
    share: Share | None = None,
    by_hqq: bool = False,
    take_over: Callable[[], Collection[Inode]] = tuple,
) -> Iterator[None]:
    """Streams the weights of what the builder makes within the block; a release that is not known builds in its own way.

    Args:
        builder: the builder's module.
        threads: threads to quantise with.
        lookup: how an embedding of its own is quantised where the graph is; left in floating point when None.
        share: lets the embedding of a quantised graph read codes that are there, before anything is written.
        by_hqq: products get the values of HQQ; the builder is to be told to round with zero points.
        take_over: see `PassContext`.

    Raises:
        RunFailed: the values of HQQ are asked for and nothing is streamed.
    """
    if unknown := unknown_releases():
        if by_hqq:
            raise _hqq_not_served(f"onnxruntime-genai {', '.join(unknown)}")
        yield
        return
    model = base_of_models(builder)
    line = Line(threads)
    stream = _Stream(line, lookup, share, by_hqq, take_over)
    replaced = {
        "make_initializer": stream.make_initializer,
        "make_packed_matmul_float_class": stream.make_packed_matmul,
        "make_packed_matmul_int4_class": stream.make_packed_codes,
        "to_nbits": stream.to_nbits,
    }
    kept = {name: getattr(model, name) for name in replaced}
    stream.originals = kept
    for name, function in replaced.items():
        setattr(model, name, lambda self, *given, _function=function, **named: _function(self, *given, **named))
    try:
        with line:
            yield
    finally:
        for name, function in kept.items():
            setattr(model, name, function)


def unknown_releases() -> list[str]:
    """Returns the installed releases of onnxruntime-genai whose builder is another one than this was written for."""
    releases = [release for wheel, release in installed_wheels().items() if "genai" in wheel]
    return [release for release in releases if not release.startswith(SERVED)]


def base_of_models(builder: Any) -> Any:
    """Returns the class that all of the builder's decoders derive from."""
    return next(one for one in builder.LlamaModel.__mro__ if one.__name__ == "Model")


@dataclass
class _Stream:
    """What stands in for four of the builder's methods.

    Attributes:
        line: where weights wait to be quantised.
        lookup: how the embedding is quantised.
        share: lets the embedding read codes.
        by_hqq: products get the values of HQQ.
        take_over: see `PassContext`.
        originals: the methods themselves.
        rows: weights by the names of their initializers.
        users: how many initializers read what lies at an address.
        spent: files whose space is given back behind what is read.
    """

    line: Line
    lookup: Scheme | None = None
    share: Share | None = None
    by_hqq: bool = False
    take_over: Callable[[], Collection[Inode]] = tuple
    originals: Mapping[str, Any] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    users: Counter[int] = field(default_factory=Counter)
    spent: Collection[Inode] = ()

    def make_initializer(self, made: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        """Registers a weight, and remembers where it lies."""
        import onnx_ir as ir
        import torch

        as_it_lies = type(tensor) is torch.Tensor and not raw and (to is None or tensor.ndim == 1)
        if as_it_lies or isinstance(tensor, Below):
            below = tensor if isinstance(tensor, Below) else Below((tensor.detach(),))
            self._register(made, below.parts, stored_tensor(below, to, name, self._passed, self._done))
            return
        if isinstance(tensor, Columns):
            rows = tensor.rows
        elif to is None or raw or not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
            self.originals["make_initializer"](made, tensor, name, to=to, raw=raw)
            return
        else:
            rows = Rows((tensor.detach().T,))
        self.rows[name] = rows
        self._register(made, rows.parts, float_tensor(rows, ir.DataType(to), name, self._done))

    def _register(self, made: Any, read: Sequence[torch.Tensor], lazy: ir.LazyTensor) -> None:
        """Makes a tensor that reads others when it is written an initializer of the graph."""
        self.users.update(one.data_ptr() for one in read)
        value = made.make_value(lazy.name, lazy.dtype, lazy.shape)
        value.const_value = lazy
        made.model.graph.register_initializer(value)

    def _done(self, read: Sequence[torch.Tensor]) -> None:
        """Gives back the memory of tensors that were read, and their disk space behind the last that reads them."""
        for one in read:
            give_back(one)
            self.users[one.data_ptr()] -= 1
            if self.spent and self.users[one.data_ptr()] == 0:
                spend(one, self.spent)

    def _passed(self, whole: torch.Tensor, rows: torch.Tensor) -> None:
        """Gives back the disk space of rows of a tensor that nothing else is to read."""
        if self.spent and self.users[whole.data_ptr()] == 1 and rows.numel() < whole.numel():
            spend(rows, self.spent)

    def make_packed_matmul(self, made: Any, q: Any, k: Any, v: Any, **_: Any) -> _Packed:
        """Puts the projections of queries, keys and values below one another without a copy of them."""
        return _Packed(Rows(tuple(one.weight.detach() for one in (q, k, v))))

    def make_packed_codes(self, made: Any, q: Any, k: Any, v: Any) -> Any:
        """Puts the codes of queries, keys and values below one another without a copy; the builder's own way for others."""
        alike = all(hasattr(one, "qweight") and (one.bits, one.group_size) == (q.bits, q.group_size) for one in (q, k, v))
        if not alike or made.quant_attrs["use_qdq"]:
            return self.originals["make_packed_matmul_int4_class"](made, q, k, v)
        qweight, scales, qzeros = (
            Below(tuple(getattr(one, part) for one in (q, k, v))) for part in ("qweight", "scales", "qzeros")
        )
        outputs = q.out_features + k.out_features + v.out_features
        return _PackedCodes(qweight, scales, qzeros, q.g_idx, q.in_features, outputs, q.bits, q.group_size)

    def to_nbits(self, made: Any) -> Any:
        """Returns the graph with quantised weights; from here on it is written, and the checkpoint read for the last time."""
        model = self._in_nbits(made)
        if self.share is not None and any(node.name == GATHER for node in model.graph):
            self.share(model)
            self._read_when_written(model)
        self.spent = self.spent or self.take_over()  # all parts of a model in parts are made before the first is written
        return model

    def _read_when_written(self, model: ir.Model) -> None:
        """Lets the codes of an embedding that came last be given back like others."""
        import onnx_ir as ir
        import torch

        for name, value in model.graph.initializers.items():
            if name.startswith(f"{EMBEDDING}.") and not isinstance(value.const_value, ir.LazyTensor):
                codes = torch.from_numpy(value.const_value.numpy())
                self.users[codes.data_ptr()] += 1
                value.const_value = stored_tensor(Below((codes,)), None, name, self._passed, self._done)

    def _in_nbits(self, made: Any) -> Any:
        """Puts MatMulNBits into the graph, and returns it; the builder's own way for what is not served here."""
        attributes, excluded = made.quant_attrs, set(made.quant_attrs["nodes_to_exclude"])
        config = getattr(made, "int4_customized_weight_config", None) or {}
        products, tables = (
            [one for one in made.model.graph if one.op_type == kind and one.name not in excluded]
            for kind in ("MatMul", "Gather")
        )
        constant = [one for one in products if one.inputs[1].is_initializer()]
        names = [one.inputs[1].name for one in constant]
        own_way = (
            attributes["use_qdq"]
            or "MatMul" not in attributes["op_types_to_quantize"]
            or ("Gather" in attributes["op_types_to_quantize"] and any(one.inputs[0].name in self.rows for one in tables))
            or any(name not in self.rows for name in names)
            or len(set(names)) < len(names)
            or getattr(made, "exact_quant_overrides", None)
            or made.matmul_attrs["weights_prepacked"]
        )
        if own_way and self.by_hqq:
            raise _hqq_not_served("this architecture, whose products share or compute their weights,")
        if own_way:
            return self.originals["to_nbits"](made)
        for node in constant:
            bits = (config.get(node.name) or {}).get("bits", attributes["bits"])
            self._quantise(made, node, int(bits))
        for node in tables:
            if self.lookup is not None and node.name == GATHER and node.inputs[0].name in self.rows:
                self._look_up(made, node, self.lookup)
        return made.model

    def _look_up(self, made: Any, node: ir.Node, scheme: Scheme) -> None:
        """Replaces the embedding by codes, which are made when they are written."""
        import onnx_ir as ir

        weight = node.inputs[0]
        matrix, kept = self.rows[weight.name].parts[0].T, weight.dtype
        count, width = matrix.shape
        blocks = -(-width // scheme.group_size)
        kernel = partial(codes_of_lookup, scheme=scheme, kept=kept)
        source = self.line.add(Rows((matrix,)), kernel, self._done)
        inputs = []
        for at, (name, dtype, columns) in enumerate((("qweight", ir.DataType.UINT8, width), ("scales", kept, blocks))):
            value = made.make_value(f"model.embed_tokens.{name}", dtype, (count, columns))
            make = partial(source.part, at, value.name)
            value.const_value = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(value.shape), name=value.name)
            made.model.graph.register_initializer(value)
            inputs.append(value)
        found = look_up(made.model, node, [], inputs, scheme.bits, scheme.group_size)
        made.values[found.name] = found

    def _quantise(self, made: Any, node: ir.Node, bits: int) -> None:
        """Replaces a product by that of a quantised weight, whose tensors are made later."""
        import onnx_ir as ir

        weight = node.inputs[1]
        rows = self.rows[weight.name]
        product = Product.of(made, node, bits)
        quantised, first = product.asked(rows.take(0, min(ASKED_ROWS, rows.shape[0])))
        kernel = product.by_hqq if self.by_hqq else product.kernel(rows, first)
        source = self.line.add(rows, kernel, self._done)
        inputs: list[ir.Value] = [node.inputs[0]]
        for at, (name, values) in enumerate(first.items()):
            value = made.make_value(name, ir.DataType.from_numpy(values.dtype), (rows.shape[0], *values.shape[1:]))
            make = partial(source.part, at, name)
            value.const_value = ir.LazyTensor(make, dtype=value.dtype, shape=ir.Shape(value.shape), name=name)
            made.model.graph.register_initializer(value)
            inputs.append(value)
        told = {one.name: one.i for one in quantised.attribute} | {"N": rows.shape[0]}
        fresh = ir.node("MatMulNBits", inputs, told, domain="com.microsoft", num_outputs=1, name=quantised.name)
        _replace(made, node, fresh)
        if not weight.uses():
            del made.model.graph.initializers[weight.name]


def _replace(made: Any, node: ir.Node, fresh: ir.Node) -> None:
    """Puts a node in the place of another one; its output takes the other's name, by which the builder knows it."""
    import onnx_ir as ir

    old, new = node.outputs[0], fresh.outputs[0]
    made.model.graph.insert_after(node, fresh)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, new.dtype, new.shape = old.name, old.dtype, old.shape
    made.values[old.name] = new
    made.model.graph.remove(node, safe=True)


def _hqq_not_served(what: str) -> RunFailed:
    return RunFailed(
        "hqq-not-served",
        f"ModelBuilder: algo_config hqq does not serve {what}",
        "build with precision fp32 (fp16 for CUDA and DirectML), and put OnnxHqqQuantization behind ModelBuilder",
    )
