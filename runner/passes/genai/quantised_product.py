"""A product of the graph with a weight of few bits: MatMulNBitsQuantizer makes its first rows, and somebody the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.models.quantized_checkpoint import Scheme, pack
from runner.passes.genai.lazy_weights import Rows, in_onnx_type, one_thread
from runner.passes.genai.nbits_rounding import Parts, Quantise, rounding_of
from runner.passes.quantize import block_rtn, hqq
from runner.passes.quantize.grid import Fit, codes_on_grids

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    import torch


@dataclass(frozen=True)
class Product:
    """A product of the graph before it is quantised.

    Attributes:
        name, input, weight, output: names of the node and of its values.
        dtype: ONNX type of the weight.
        bits: of a code.
        method: the builder's name of how it is quantised.
        settings: what MatMulNBitsQuantizer is told.
    """

    name: str
    input: str
    weight: str
    output: str
    dtype: Any
    bits: int
    method: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, made: Any, node: ir.Node, bits: int) -> Product:
        """Returns the product that a node stands for, quantised as the builder is told."""
        (given, weight), output = (str(one.name) for one in node.inputs), str(node.outputs[0].name)
        method, told = getattr(made, "quantization_algo", "default"), made.quant_attrs
        settings = {
            "bits": bits,
            "block_size": told["matmul_block_size"],
            "is_symmetric": told["is_symmetric"],
            "accuracy_level": told["accuracy_level"],
            "op_types_to_quantize": ("MatMul",),
            "algo_config": made.make_algo_config(method, {node.name: {"bits": bits}}),
        }
        return cls(str(node.name), given, weight, output, node.inputs[1].dtype, bits, method, settings)

    def asked(self, rows: torch.Tensor) -> tuple[onnx.NodeProto, dict[str, np.ndarray[Any, Any]]]:
        """Returns the node and the tensors that MatMulNBitsQuantizer makes of a product with these rows."""
        from onnx import helper, numpy_helper
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.quantization.quant_utils import QuantFormat

        weight = numpy_helper.from_array(in_onnx_type(rows.T.contiguous(), self.dtype), self.weight)
        weight.data_type = int(self.dtype)  # bf16 is no type of numpy's own
        outputs, inputs = rows.shape
        graph = helper.make_graph(
            [helper.make_node("MatMul", [self.input, self.weight], [self.output], name=self.name)],
            "product",
            [helper.make_tensor_value_info(self.input, weight.data_type, ["batch", "sequence", inputs])],
            [helper.make_tensor_value_info(self.output, weight.data_type, ["batch", "sequence", outputs])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        quantiser = MatMulNBitsQuantizer(model=model, quant_format=QuantFormat.QOperator, **self.settings)
        quantiser.process()
        (quantised,) = quantiser.model.model.graph.node
        values = {one.name: one for one in quantiser.model.model.graph.initializer}
        return quantised, {name: numpy_helper.to_array(values[name]) for name in quantised.input[1:]}

    def by_hqq(self, rows: torch.Tensor) -> Parts:
        """Returns codes [rows, blocks, bytes], scales and zero points as OnnxHqqQuantization makes them of rows in the type."""
        scheme = Scheme(self.bits, self.settings["block_size"], symmetric=False)
        codes, scales, zeros = _on_grids(hqq.fit, rows, scheme, self.dtype)
        packed = pack(codes, self.bits).view(*scales.shape, -1)
        return [packed.numpy(), scales.float().numpy().astype(self.dtype.numpy()), pack(zeros.byte(), self.bits).numpy()]

    def kernel(self, rows: Rows, first: Mapping[str, np.ndarray[Any, Any]]) -> Quantise:
        """Returns what quantises rows: our own rounding where it gives what was asked for the first ones."""
        import numpy as np
        from onnx_ir.tensor_adapters import to_torch_dtype

        own = rounding_of(self.method, self.bits, self.settings["block_size"], self.settings["is_symmetric"])
        if own is not None:
            stored, kept, expected = to_torch_dtype(self.dtype), self.dtype.numpy(), list(first.values())

            def in_its_type(some: torch.Tensor) -> Parts:
                """Quantises what the weight's type leaves of rows; their scales are of that type as well."""
                return [part.astype(kept) if part.dtype.kind == "f" else part for part in own(some.to(stored).float())]

            with one_thread():
                tried = in_its_type(rows.take(0, len(expected[0])))
            if len(tried) == len(expected) and all(map(np.array_equal, tried, expected)):
                return in_its_type
        return lambda some: list(self.asked(some)[1].values())


def codes_of_lookup(rows: torch.Tensor, scheme: Scheme, kept: ir.DataType) -> Parts:
    """Returns codes [rows, columns] and scales [rows, blocks], as OnnxBlockWiseRtnQuantization makes them of rows in a type."""
    codes, scales, _ = _on_grids(block_rtn.fit, rows, scheme, kept)
    return [codes[:, : rows.shape[1]].contiguous().numpy(), scales.float().numpy().astype(kept.numpy())]


def _on_grids(fit: Fit, rows: torch.Tensor, scheme: Scheme, kept: ir.DataType) -> tuple[torch.Tensor, ...]:
    """Returns codes [rows, columns and padding], scales and zeros [rows, blocks] of rows in an ONNX type."""
    import torch
    from onnx_ir.tensor_adapters import to_torch_dtype

    stored, columns = to_torch_dtype(kept), rows.shape[1]
    wide = torch.nn.functional.pad(rows.to(stored).float(), (0, -columns % scheme.group_size))
    return codes_on_grids(fit, wide, scheme, columns, stored)
