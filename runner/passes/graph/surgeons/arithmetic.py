"""Surgeons that write arithmetic in another form: products, divisions, activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from runner.passes.graph.surgeons.surgeon import IrSurgeon, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir


class GemmToMatMulAdd(IrSurgeon):
    """Writes Gemm as MatMul and Add, which is what block-wise quantisers look for. Scaled and transposed A stay as they are."""

    surgeon: Literal["GemmToMatMulAdd"]

    def operate(self, model: ir.Model) -> Outcome:
        """Splits every Gemm with alpha and beta 1 and A as it is; a constant B is transposed once for all that read it."""
        from runner.passes.graph.surgeons.editing import Rewrite, add_weight, constant_of, nodes_of

        turned: dict[ir.Value, ir.Value] = {}
        gemms = nodes_of(model, "Gemm", domain="")
        plain = [node for node in gemms if _is_plain(node)]
        for node in plain:
            rewrite = Rewrite(node.outputs[0])
            a, b, *rest = node.inputs
            if b is not None and _attribute(node, "transB", 0):
                content = constant_of(b)
                if content is not None and b not in turned:
                    turned[b] = add_weight(b.graph or rewrite.graph, f"{b.name}_transposed", content.T)
                b = turned.get(b) or rewrite.op("Transpose", b, perm=[1, 0])
            product = rewrite.op("MatMul", a, b)
            bias = rest[0] if rest else None
            rewrite.finish(rewrite.op("Add", product, bias) if bias is not None else product)
        left = len(gemms) - len(plain)
        return Outcome(len(plain), f"{left} with a factor or a transposed A stay" if left else None)


class MatMulAddToGemm(IrSurgeon):
    """Writes MatMul with a matrix and Add of a vector as Gemm; inputs of more dimensions are reshaped around it."""

    surgeon: Literal["MatMulAddToGemm"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Joins the pairs; those whose shape is not known well enough to restore stay."""
        from runner.passes.graph.surgeons.editing import nodes_of

        return Outcome(sum(_join(node) for node in nodes_of(model, "MatMul", domain="")))


def _join(product: ir.Node) -> bool:
    from runner.passes.graph.surgeons.editing import Rewrite, other_input, sole_consumer

    a, b = product.inputs
    add = sole_consumer(product.outputs[0], "Add")
    bias = other_input(add, product.outputs[0]) if add is not None else None
    if a is None or b is None or add is None or bias is None or _rank(b) != 2 or _rank(bias) != 1 or a.shape is None:
        return False
    shape = _restorable(product.outputs[0])
    if _rank(a) != 2 and (shape is None or not isinstance(a.shape[-1], int)):
        return False
    relu = sole_consumer(add.outputs[0], "Relu") if _rank(a) != 2 else None
    rewrite = Rewrite((relu or add).outputs[0])
    if _rank(a) == 2:
        rewrite.finish(rewrite.op("Gemm", a, b, bias))
        return True
    flat = rewrite.op("Reshape", a, rewrite.integers(-1, a.shape[-1]))
    joined = rewrite.op("Gemm", flat, b, bias)
    if relu is not None:
        joined = rewrite.op("Relu", joined)
    rewrite.finish(rewrite.op("Reshape", joined, rewrite.integers(*(shape or ()))))
    return True


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _restorable(value: ir.Value) -> list[int] | None:
    """Returns the shape as Reshape takes it, where at most one dimension is not known."""
    if value.shape is None:
        return None
    dimensions = [size if isinstance(size, int) else -1 for size in value.shape]
    return dimensions if dimensions.count(-1) <= 1 and 0 not in dimensions else None


class ReciprocalMulToDiv(IrSurgeon):
    """Writes the product with a reciprocal as a division, which is the form that RMSNorm fusions look for."""

    surgeon: Literal["ReciprocalMulToDiv"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces a * Reciprocal(x) by a / x."""
        from runner.passes.graph.surgeons.editing import Rewrite, nodes_of, other_input

        changes = 0
        for reciprocal in nodes_of(model, "Reciprocal", domain=""):
            inverse, divisor = reciprocal.outputs[0], reciprocal.inputs[0]
            for product in [node for node in inverse.consumers() if node.op_type == "Mul" and node.domain == ""]:
                factor = other_input(product, inverse)
                if factor is not None:
                    rewrite = Rewrite(product.outputs[0])
                    rewrite.finish(rewrite.op("Div", factor, divisor))
                    changes += 1
        return Outcome(changes)


class ReplaceErfWithTanh(IrSurgeon):
    """Computes Erf(x) as Tanh(605/503 x), for targets without Erf. The result differs by up to 0.02."""

    surgeon: Literal["ReplaceErfWithTanh"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every Erf."""
        from runner.passes.graph.surgeons.editing import Rewrite, nodes_of, numpy_type

        found = nodes_of(model, "Erf", domain="")
        for node in found:
            x = _first(node)
            rewrite = Rewrite(node.outputs[0])
            rewrite.finish(rewrite.op("Tanh", rewrite.op("Mul", x, rewrite.constant(605 / 503, numpy_type(x)))))
        return Outcome(len(found))


class DecomposeQuickGelu(IrSurgeon):
    """Writes ONNX Runtime's QuickGelu in standard operators: x * sigmoid(alpha x)."""

    surgeon: Literal["DecomposeQuickGelu"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every QuickGelu."""
        from runner.passes.graph.surgeons.editing import MICROSOFT, Rewrite, nodes_of, numpy_type

        found = nodes_of(model, "QuickGelu", domain=MICROSOFT)
        for node in found:
            x = _first(node)
            rewrite = Rewrite(node.outputs[0])
            scaled = rewrite.op("Mul", x, rewrite.constant(_attribute(node, "alpha", 1.702), numpy_type(x)))
            rewrite.finish(rewrite.op("Mul", x, rewrite.op("Sigmoid", scaled)))
        return Outcome(len(found))


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.op_type} '{node.name}' reads nothing")
    return value


def _attribute(node: ir.Node, name: str, default: float) -> Any:
    held = node.attributes.get(name)
    return default if held is None else held.value


def _is_plain(gemm: ir.Node) -> bool:
    factors = all(math.isclose(_attribute(gemm, name, 1.0), 1.0) for name in ("alpha", "beta"))
    return factors and not _attribute(gemm, "transA", 0)
