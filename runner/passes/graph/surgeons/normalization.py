"""Surgeons that write normalisation in another form.

RMSNorm divides by sqrt(mean(x^2) + eps), L2 normalisation by sqrt(sum(x^2)): up to eps the first is the second times sqrt(N).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from runner.passes.graph.surgeons.surgeon import IrSurgeon, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir

    from runner.passes.graph.surgeons.editing import Rewrite

# The fused operators, and what ONNX Runtime takes for eps where they state none.
_EPSILON = {"SimplifiedLayerNormalization": 1e-5, "SkipSimplifiedLayerNormalization": 1e-12}


class PowReduceSumPowDiv2LpNorm(IrSurgeon):
    """Writes x / (sum of x^2)^0.5 over the last axis as LpNormalization."""

    surgeon: Literal["PowReduceSumPowDiv2LpNorm"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every Div whose divisor is such a norm."""
        from runner.passes.graph.surgeons.editing import Rewrite, nodes_of, producer

        changes = 0
        for division in nodes_of(model, "Div", domain=""):
            root = producer(division.inputs[1], "Pow")
            total = producer(root.inputs[0], "ReduceSum") if root is not None and _is_number(root.inputs[1], 0.5) else None
            square = producer(total.inputs[0], "Pow") if total is not None and _over_last_axis(total) else None
            x = division.inputs[0]
            if square is not None and _is_number(square.inputs[1], 2.0) and square.inputs[0] is x:
                rewrite = Rewrite(division.outputs[0])
                rewrite.finish(rewrite.op("LpNormalization", x, axis=-1, p=2))
                changes += 1
        return Outcome(changes)


class RMSNormToL2Norm(IrSurgeon):
    """Writes RMSNorm in single operators as LpNormalization and a product; its eps is lost."""

    surgeon: Literal["RMSNormToL2Norm"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces Pow, ReduceMean, Add, Sqrt and Div (or Reciprocal and Mul) in front of a product with a weight."""
        from runner.passes.graph.surgeons.editing import Rewrite, nodes_of

        changes = 0
        for square in nodes_of(model, "Pow", domain=""):
            x = square.inputs[0]
            normed = _rms_normed(square, x) if x is not None else None
            scaled = _scaled_by_weight(normed) if normed is not None else None
            if x is None or scaled is None:
                continue
            cast, product, weight = scaled
            rewrite = Rewrite(product.outputs[0])
            unit = rewrite.op("LpNormalization", x, axis=-1, p=2)
            if cast is not None:
                unit = rewrite.op("Cast", unit, to=cast.attributes["to"].value)
            rewrite.finish(rewrite.op("Mul", unit, _times_root(rewrite, weight)))
            changes += 1
        return Outcome(changes)


class SimplifiedLayerNormToL2Norm(IrSurgeon):
    """Writes the fused RMSNorm, with or without the sum before it, as LpNormalization and a product; its eps is lost."""

    surgeon: Literal["SimplifiedLayerNormToL2Norm"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every (Skip)SimplifiedLayerNormalization over the last axis."""

        def l2(rewrite: Rewrite, x: ir.Value, weight: ir.Value, node: ir.Node) -> ir.Value:
            unit: ir.Value = rewrite.op("LpNormalization", x, axis=-1, p=2)
            scaled: ir.Value = rewrite.op("Mul", unit, _times_root(rewrite, weight))
            return scaled

        return _lower(model, l2, constant_weight=True)


class SimplifiedLayerNormToRMSNorm(IrSurgeon):
    """Writes the fused RMSNorm, with or without the sum before it, in single operators."""

    surgeon: Literal["SimplifiedLayerNormToRMSNorm"]

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every (Skip)SimplifiedLayerNormalization over the last axis."""
        axes_as_input = model.opset_imports.get("", 1) >= 18

        def rms(rewrite: Rewrite, x: ir.Value, weight: ir.Value, node: ir.Node) -> ir.Value:
            from runner.passes.graph.surgeons.editing import numpy_type

            element = numpy_type(weight)
            square = rewrite.op("Pow", x, rewrite.constant([2.0], element))
            if axes_as_input:
                mean = rewrite.op("ReduceMean", square, rewrite.integers(-1), keepdims=1)
            else:
                mean = rewrite.op("ReduceMean", square, axes=[-1], keepdims=1)
            held = node.attributes.get("epsilon")
            eps = rewrite.constant([_EPSILON[node.op_type] if held is None else held.as_float()], element)
            divisor = rewrite.op("Sqrt", rewrite.op("Add", mean, eps))
            scaled: ir.Value = rewrite.op("Mul", rewrite.op("Div", x, divisor), weight)
            return scaled

        return _lower(model, rms, constant_weight=False)


def _lower(model: ir.Model, write: Any, *, constant_weight: bool) -> Outcome:
    """Replaces fused RMSNorms by what `write(rewrite, x, weight, node)` makes; a sum that one puts out as well is kept."""
    from runner.passes.graph.surgeons.editing import Rewrite, is_weight, nodes_of

    changes, found = 0, nodes_of(model, *_EPSILON)
    for node in found:
        skips = node.op_type.startswith("Skip")
        x, *rest = [value for value in node.inputs if value is not None]
        if not _can_lower(node, skips) or (constant_weight and not is_weight(rest[-1])):
            continue
        total = node.outputs[3] if skips and len(node.outputs) == 4 else None
        rewrite = Rewrite(node.outputs[0])
        summed = rewrite.op("Add", x, rest[0]) if skips else x
        new = write(rewrite, summed, rest[-1], node)
        if total is not None and (total.uses() or total.is_graph_output()):
            summed.name, total.name = total.name, f"{total.name}/replaced"
            summed.shape, summed.type = total.shape, total.type
            total.replace_all_uses_with(summed, replace_graph_outputs=True)
        rewrite.finish(new)
        changes += 1
    left = len(found) - changes
    return Outcome(changes, f"{left} with a bias, an axis or outputs of their own stay" if left else None)


def _can_lower(node: ir.Node, skips: bool) -> bool:
    given = [value for value in node.inputs if value is not None]
    axis = node.attributes.get("axis")
    statistics = [value for value in node.outputs[1:3] if value.uses() or value.is_graph_output()]
    return len(given) == (3 if skips else 2) and not statistics and (axis is None or axis.as_int() == -1)


def _times_root(rewrite: Rewrite, weight: ir.Value) -> ir.Value:
    """Returns the weight times sqrt(N), as one number where all weights are 1 (rotated models)."""
    import numpy as np

    from runner.passes.graph.surgeons.editing import constant_of

    content = constant_of(weight)
    if content is None:
        raise ValueError(f"{weight.name} is no constant")
    scaled = np.ones(1) if np.all(content == 1) else content.astype(np.float64)
    return rewrite.constant(scaled * np.sqrt(content.shape[-1]), content.dtype, "weight")


def _rms_normed(square: ir.Node, x: ir.Value) -> ir.Value | None:
    """Returns x / sqrt(mean(square) + eps), where the graph computes that of this square and nothing else."""
    from runner.passes.graph.surgeons.editing import sole_consumer

    mean = sole_consumer(square.outputs[0], "ReduceMean") if _is_number(square.inputs[1], 2.0) else None
    shifted = sole_consumer(mean.outputs[0], "Add") if mean is not None and _over_last_axis(mean) else None
    root = sole_consumer(shifted.outputs[0], "Sqrt") if shifted is not None else None
    last = sole_consumer(root.outputs[0], "Div", "Reciprocal") if root is not None else None
    if last is None:
        return None
    if last.op_type == "Div" and last.inputs[0] is x:
        return last.outputs[0]
    if last.op_type == "Div" and not _is_number(last.inputs[0], 1.0):
        return None
    product = sole_consumer(last.outputs[0], "Mul")
    return product.outputs[0] if product is not None and x in product.inputs else None


def _scaled_by_weight(normed: ir.Value) -> tuple[ir.Node | None, ir.Node, ir.Value] | None:
    """Returns (Cast between, or None; the product; its weight) where the value is scaled by a constant."""
    from runner.passes.graph.surgeons.editing import is_weight, other_input, sole_consumer

    cast = sole_consumer(normed, "Cast")
    value = cast.outputs[0] if cast is not None else normed
    product = sole_consumer(value, "Mul")
    weight = other_input(product, value) if product is not None else None
    return (cast, product, weight) if product is not None and weight is not None and is_weight(weight) else None


def _is_number(value: ir.Value | None, number: float) -> bool:
    from runner.passes.graph.surgeons.editing import constant_of

    content = constant_of(value)
    return content is not None and content.size == 1 and float(content.reshape(())) == number


def _over_last_axis(node: ir.Node) -> bool:
    """Says whether a reduction keeps dimensions and goes over the last axis, by -1 or by its number."""
    from runner.passes.graph.surgeons.editing import constant_of

    keep = node.attributes.get("keepdims")
    held = node.attributes.get("axes")
    content = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(held.as_ints()) if held is not None else [] if content is None else content.reshape(-1).tolist()
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    last = [-1] if shape is None else [-1, len(shape) - 1]
    return len(axes) == 1 and axes[0] in last and (keep is None or keep.as_int() == 1)
