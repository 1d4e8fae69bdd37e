"""The surgeon that has a graph give sentence embeddings in place of hidden states. It is ours: Olive has none for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from runner.passes.graph.surgeons.surgeon import CannotOperate, IrSurgeon, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir

_AXES_ARE_INPUTS = 13  # opset since which ReduceSum reads its axes from an input
_LEAST_LENGTH = 1e-12


class PoolSentences(IrSurgeon):
    """Gives one vector a text, float32, in place of the hidden states of its tokens. Ours: Olive has none for that."""

    surgeon: Literal["PoolSentences"]
    pooling: Literal["mean", "first_token"] = Field("mean", description="the mean over all tokens but padding, or token 0")
    normalize: bool = Field(True, description="scale every vector to length 1")
    hidden_states: str = Field("last_hidden_state", description="the output to pool, [batch, tokens, width]")
    attention_mask: str = Field("attention_mask", description="the input that is 0 at padding, [batch, tokens]")
    output_name: str = Field("sentence_embedding", min_length=1, description="the output, the only one then: [batch, width]")

    def operate(self, model: ir.Model) -> Outcome:
        """Adds the pooling behind the hidden states and takes all other outputs away.

        Raises:
            NotInGraph: the graph has no such output or input.
            CannotOperate: the output has not three dimensions, or the opset is older than 13.
        """
        import onnx_ir as ir

        from runner.passes.graph.surgeons.editing import prune
        from runner.passes.graph.surgeons.io import named

        hidden = named(model.graph.outputs, self.hidden_states, "output")
        _check(model, hidden)
        pooling = _Pooling(model.graph, self.output_name)
        texts = hidden
        if self.pooling == "mean":
            texts = named(model.graph.inputs, self.attention_mask, "input")
            vectors = pooling.mean(hidden, texts)
        else:
            vectors = pooling.first(hidden)
        if self.normalize:
            vectors = pooling.unit(vectors)
        vectors.name, vectors.type = self.output_name, ir.TensorType(ir.DataType.FLOAT)
        if texts.shape is not None and hidden.shape is not None:
            vectors.shape = ir.Shape([texts.shape[0], hidden.shape[2]])
        others = [output for output in model.graph.outputs if output is not hidden]
        model.graph.outputs[:] = [vectors]
        for output in others:
            prune(output.producer())
        return Outcome(1, f"'{self.output_name}' is the only output")


def _check(model: ir.Model, hidden: ir.Value) -> None:
    if hidden.shape is not None and hidden.shape.rank() != 3:
        raise CannotOperate(
            "not-hidden-states",
            f"'{hidden.name}' has the shape {hidden.shape}, and hidden states are [batch, tokens, width]",
            "name another output as hidden_states",
        )
    opset = model.opset_imports.get("", 0)
    if opset < _AXES_ARE_INPUTS:
        raise CannotOperate(
            "old-opset",
            f"the graph is of opset {opset}, and pooling needs {_AXES_ARE_INPUTS}",
            "convert with a newer target_opset, or put OnnxOpVersionConversion before",
        )


class _Pooling:
    """Adds nodes at the end of a graph. It computes in float32: a sum over tokens may be beyond fp16."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name, self._made = graph, name, 0

    def mean(self, hidden: ir.Value, mask: ir.Value) -> ir.Value:
        """Returns the mean of the states where the mask is not 0; zeros where it is nowhere."""
        kept = self._float(self._op("Unsqueeze", mask, self._constant([2])))
        total = self._sum(self._op("Mul", self._float(hidden), kept))
        return self._op("Div", total, self._op("Max", self._sum(kept), self._constant(1.0)))

    def first(self, hidden: ir.Value) -> ir.Value:
        """Returns the states of the first tokens."""
        return self._float(self._op("Gather", hidden, self._constant(0), axis=1))

    def unit(self, vectors: ir.Value) -> ir.Value:
        """Returns the vectors scaled to length 1; zeros stay zeros."""
        squares = self._op("ReduceSum", self._op("Mul", vectors, vectors), self._constant([-1]), keepdims=1)
        return self._op("Div", vectors, self._op("Max", self._op("Sqrt", squares), self._constant(_LEAST_LENGTH)))

    def _sum(self, states: ir.Value) -> ir.Value:
        return self._op("ReduceSum", states, self._constant([1]), keepdims=0)

    def _float(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        return value if value.dtype == ir.DataType.FLOAT else self._op("Cast", value, to=int(ir.DataType.FLOAT))

    def _constant(self, content: float | list[int]) -> ir.Value:
        import numpy as np

        from runner.passes.graph.surgeons.editing import add_weight

        element = np.float32 if isinstance(content, float) else np.int64
        return add_weight(self._graph, f"{self._name}/constant", np.asarray(content, element))

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        import onnx_ir as ir

        self._made += 1
        name = f"{self._name}/{op_type}_{self._made}"
        node = ir.node(op_type, list(inputs), attributes, name=name, outputs=[ir.Value(name=f"{name}/output")])
        self._graph.append(node)
        return node.outputs[0]
