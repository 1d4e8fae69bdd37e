"""Surgeons of quantised graphs: what QuantizeLinear, DequantizeLinear and MatMulNBits leave to be simplified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from runner.passes.graph.surgeons.surgeon import CannotOperate, IrSurgeon, NotInGraph, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir

    from runner.passes.graph.surgeons.editing import Array


class RemoveQDQ(IrSurgeon):
    """Takes out pairs of QuantizeLinear and DequantizeLinear: tensors keep their full precision."""

    surgeon: Literal["RemoveQDQ"]
    keep_clip_after_inputs: bool = Field(False, description="clip inputs of the graph to the range that a pair had")

    def operate(self, model: ir.Model) -> Outcome:
        """Removes the pairs."""
        from runner.passes.graph.surgeons.editing import Rewrite, bypass

        pairs = _pairs(model)
        for quantise, dequantise in pairs:
            source, limits = quantise.inputs[0], _range(dequantise)
            if source is None:
                continue
            if self.keep_clip_after_inputs and source.is_graph_input() and limits is not None:
                rewrite = Rewrite(dequantise.outputs[0])
                rewrite.finish(rewrite.op("Clip", source, *(rewrite.constant(limit) for limit in limits)))
            else:
                bypass(dequantise.outputs[0], source)
        return Outcome(len(pairs))


class QDQToClip(IrSurgeon):
    """Writes pairs of QuantizeLinear and DequantizeLinear as the Clip to the range that they have."""

    surgeon: Literal["QDQToClip"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces pairs with one scale for the whole tensor."""
        from runner.passes.graph.surgeons.editing import Rewrite

        changes, pairs = 0, _pairs(model)
        for quantise, dequantise in pairs:
            limits = _range(dequantise)
            if limits is not None:
                rewrite = Rewrite(dequantise.outputs[0])
                rewrite.finish(rewrite.op("Clip", quantise.inputs[0], *(rewrite.constant(limit) for limit in limits)))
                changes += 1
        left = len(pairs) - changes
        return Outcome(changes, f"{left} with a scale for each channel stay" if left else None)


class RemoveDeqLin(IrSurgeon):
    """Computes DequantizeLinear of weights ahead: they are stored in floating point."""

    surgeon: Literal["RemoveDeqLin"]

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces every DequantizeLinear of constants by its result."""
        from runner.passes.graph.surgeons.editing import Rewrite, constant_of, nodes_of

        changes = 0
        for node in nodes_of(model, "DequantizeLinear"):
            codes, scale, zero = (constant_of(value) for value in [*node.inputs, None][:3])
            if codes is None or scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
                continue
            rewrite = Rewrite(node.outputs[0])
            content = rewrite.constant(_dequantised(node, codes, scale, zero), label="dequantized")
            if node.outputs[0].is_graph_output():
                content = rewrite.op("Identity", content)
            rewrite.finish(content)
            changes += 1
        return Outcome(changes)


class RemoveGidxFromMatMulNBits(IrSurgeon):
    """Takes the group index out of MatMulNBits where the groups lie in order, which is what is assumed without one."""

    surgeon: Literal["RemoveGidxFromMatMulNBits"]

    def operate(self, model: ir.Model) -> Outcome:
        """Removes indices 0, 0, … 1, 1, … of the node's block size."""
        import numpy as np

        from runner.passes.graph.surgeons.editing import MICROSOFT, constant_of, drop_if_unread, nodes_of

        changes = 0
        for node in nodes_of(model, "MatMulNBits", domain=MICROSOFT):
            index = node.inputs[4] if len(node.inputs) > 4 else None
            groups = constant_of(index)
            size = node.attributes["block_size"].as_int()
            if index is None or groups is None or not np.array_equal(groups, np.arange(groups.size) // size):
                continue
            node.replace_input_with(4, None)
            drop_if_unread(index)
            changes += 1
        return Outcome(changes)


class ExposeQuantizedOutput(IrSurgeon):
    """Puts out the integers behind an output instead of their floating-point values, with scale and zero point beside them."""

    surgeon: Literal["ExposeQuantizedOutput"]
    output_name: str = Field(description="output that a DequantizeLinear makes")

    def operate(self, model: ir.Model) -> Outcome:
        """Replaces the output by the tensor that its DequantizeLinear reads.

        The new outputs are called `OUTPUT_exposed_scale_output` and `OUTPUT_exposed_zero_point_output`.
        """
        import numpy as np

        from runner.passes.graph.surgeons.editing import constant_of, producer, prune

        outputs = model.graph.outputs
        output = next((value for value in outputs if value.name == self.output_name), None)
        if output is None:
            raise NotInGraph("output", self.output_name, [str(value.name) for value in outputs])
        node = producer(output, "DequantizeLinear")
        codes, scale = (node.inputs[0], constant_of(node.inputs[1])) if node is not None else (None, None)
        if node is None or codes is None or producer(codes, "QuantizeLinear") is None or scale is None or scale.size != 1:
            raise CannotOperate(
                "not-quantised",
                f"the output '{self.output_name}' is not made by QuantizeLinear and DequantizeLinear of one scale",
            )
        zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        zero = np.zeros(1, np.uint8) if zero is None else zero.reshape(1)
        codes.dtype, codes.shape = _ir_type(zero), output.shape
        outputs[list(outputs).index(output)] = codes
        outputs.extend(
            _put_out(model, f"{self.output_name}_exposed_{label}", content)
            for label, content in (("scale", scale.reshape(1)), ("zero_point", zero))
        )
        prune(node)
        return Outcome(1)


def _ir_type(content: Array) -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType.from_numpy(content.dtype)


def _put_out(model: ir.Model, name: str, content: Array) -> ir.Value:
    import onnx_ir as ir

    from runner.passes.graph.surgeons.editing import add_weight

    held = add_weight(model.graph, f"{name}_value", content)
    shown = ir.Value(name=f"{name}_output", shape=ir.Shape(content.shape), type=ir.TensorType(_ir_type(content)))
    model.graph.append(ir.node("Identity", [held], name=name, outputs=[shown]))
    return shown


def _pairs(model: ir.Model) -> list[tuple[ir.Node, ir.Node]]:
    from runner.passes.graph.surgeons.editing import nodes_of, producer

    found = [(producer(node.inputs[0], "QuantizeLinear"), node) for node in nodes_of(model, "DequantizeLinear")]
    return [(quantise, dequantise) for quantise, dequantise in found if quantise is not None]


def _range(dequantise: ir.Node) -> tuple[Any, Any] | None:
    """Returns the lowest and highest value of the pair; None where they differ by channel or are not constant."""
    import ml_dtypes
    import numpy as np

    from runner.passes.graph.surgeons.editing import constant_of

    scale = constant_of(dequantise.inputs[1])
    zero = constant_of(dequantise.inputs[2]) if len(dequantise.inputs) > 2 else np.zeros(1, np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    limits = ml_dtypes.iinfo(zero.dtype)  # type: ignore[no-untyped-call]
    step, offset = scale.reshape(()), int(zero.reshape(()))
    return step * (int(limits.min) - offset), step * (int(limits.max) - offset)


def _dequantised(node: ir.Node, codes: Array, scale: Array, zero: Array | None) -> Array:
    """Returns (codes - zero) * scale as ONNX defines it: for the tensor, along an axis, or in blocks of it."""
    import numpy as np

    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    offset = np.zeros_like(scale, np.int32) if zero is None else zero.astype(np.int32)
    if block:
        keep = np.arange(codes.shape[axis])
        scale, offset = (np.repeat(part, block, axis).take(keep, axis) for part in (scale, offset))
    elif scale.ndim == 1 and codes.ndim > 0:
        shape = [1] * codes.ndim
        shape[axis] = scale.size
        scale, offset = (part.reshape(shape if part.size > 1 else ()) for part in (scale, offset))
    content: Array = ((codes.astype(np.int32) - offset) * scale.astype(np.float32)).astype(scale.dtype)
    return content
