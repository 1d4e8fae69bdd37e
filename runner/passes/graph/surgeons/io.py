"""Surgeons of what a graph takes and gives: names, dimensions, order, and which tensors there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from runner.passes.graph.surgeons.surgeon import CannotOperate, IrSurgeon, NotInGraph, Outcome

if TYPE_CHECKING:
    import onnx_ir as ir


class _Rename(IrSurgeon):
    old_names: list[str] = Field(min_length=1, description="names today")
    new_names: list[str] = Field(description="names to give, in the same order")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.old_names) != len(self.new_names):
            raise ValueError(f"{len(self.old_names)} old_names do not go with {len(self.new_names)} new_names")
        if len(set(self.new_names)) != len(self.new_names):
            raise ValueError("new_names has a name twice")
        return self

    def _rename(self, model: ir.Model, values: Sequence[ir.Value], what: str) -> Outcome:
        chosen = [named(values, old, what) for old in self.old_names]
        taken = {value.name for value in _all_values(model)} - set(self.old_names)
        if clash := next((name for name in self.new_names if name in taken), None):
            raise CannotOperate("name-taken", f"another tensor of the graph is called '{clash}'", "choose another name")
        for value, new in zip(chosen, self.new_names, strict=True):
            value.name = new
        return Outcome(len(chosen))


class RenameInputs(_Rename):
    """Gives inputs of the graph other names."""

    surgeon: Literal["RenameInputs"]

    def operate(self, model: ir.Model) -> Outcome:
        """Renames the inputs; everything that reads them follows."""
        return self._rename(model, model.graph.inputs, "input")


class RenameOutputs(_Rename):
    """Gives outputs of the graph other names."""

    surgeon: Literal["RenameOutputs"]

    def operate(self, model: ir.Model) -> Outcome:
        """Renames the outputs."""
        return self._rename(model, model.graph.outputs, "output")


class RenameInputDims(IrSurgeon):
    """Gives a dimension of an input a name, which frees it from a fixed size."""

    surgeon: Literal["RenameInputDims"]
    dim_idx: int = Field(ge=0, description="number of the dimension, from 0")
    dim_name: str = Field(min_length=1, description="name to give it")
    input_name: str | None = Field(None, description="the input; or input_idx")
    input_idx: int | None = Field(None, ge=0, description="number of the input, from 0")

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.input_name is None and self.input_idx is None:
            raise ValueError("input_name or input_idx is missing")
        return self

    def operate(self, model: ir.Model) -> Outcome:
        """Names the dimension."""
        if self.input_name is not None:
            return _name_dimension(named(model.graph.inputs, self.input_name, "input"), self.dim_idx, self.dim_name)
        return _name_dimension(_numbered(model.graph.inputs, self.input_idx or 0, "input"), self.dim_idx, self.dim_name)


class RenameOutputDims(IrSurgeon):
    """Gives a dimension of an output a name."""

    surgeon: Literal["RenameOutputDims"]
    output_idx: int = Field(ge=0, description="number of the output, from 0")
    dim_idx: int = Field(ge=0, description="number of the dimension, from 0")
    dim_name: str = Field(min_length=1, description="name to give it")

    def operate(self, model: ir.Model) -> Outcome:
        """Names the dimension."""
        return _name_dimension(_numbered(model.graph.outputs, self.output_idx, "output"), self.dim_idx, self.dim_name)


class ReorderInputs(IrSurgeon):
    """Puts the inputs of the graph in another order."""

    surgeon: Literal["ReorderInputs"]
    permutation: list[int] = Field(description="for each place the number of the input that comes there")

    def operate(self, model: ir.Model) -> Outcome:
        """Reorders the inputs."""
        inputs = list(model.graph.inputs)
        if sorted(self.permutation) != list(range(len(inputs))):
            raise CannotOperate(
                "bad-permutation",
                f"the graph has {len(inputs)} inputs ({_listed(inputs)}), and {self.permutation} is no order of them",
                f"name each number from 0 to {len(inputs) - 1} once",
            )
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs[number] for number in self.permutation)
        return Outcome(sum(number != at for at, number in enumerate(self.permutation)))


class RemoveInputs(IrSurgeon):
    """Takes inputs out of the graph, where they are optional to what reads them or a node reads nothing else."""

    surgeon: Literal["RemoveInputs"]
    names: list[str] = Field(min_length=1, description="inputs to take out")

    def operate(self, model: ir.Model) -> Outcome:
        """Removes the inputs and what depends on nothing but them."""
        for value in [named(model.graph.inputs, name, "input") for name in self.names]:
            _leave_out(value, model)
            model.graph.inputs.remove(value)
        return Outcome(len(self.names))


class ZeroOutInput(IrSurgeon):
    """Feeds zeros to an input of a node, of the shape and type that it reads now."""

    surgeon: Literal["ZeroOutInput"]
    node_name: str = Field(description="the node")
    input_idx: int = Field(ge=0, description="number of the node's input, from 0")

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Puts a constant, or zeros of the shape found at run time, in place of the input."""
        import numpy as np
        import onnx_ir as ir

        from runner.passes.graph.surgeons.editing import add_weight, drop_if_unread, prune

        node = _node_named(model, self.node_name)
        value = node.inputs[self.input_idx] if self.input_idx < len(node.inputs) else None
        if value is None or not isinstance(node.graph, ir.Graph):
            raise NotInGraph(
                f"input of node '{self.node_name}'", str(self.input_idx), [str(n) for n in range(len(node.inputs))]
            )
        if value.dtype is None:
            raise CannotOperate("unknown-type", f"the type of '{value.name}' is not known", "run InferShapes before")
        name, element = f"{self.node_name}/zeros", value.dtype.numpy()
        if value.shape is not None and value.shape.is_static():
            zeros = add_weight(node.graph, name, np.zeros(value.shape.numpy(), element))
        else:
            shape = ir.node("Shape", [value], name=f"{name}/Shape", outputs=[ir.Value(name=f"{name}/shape")])
            fill = ir.node(
                "ConstantOfShape", shape.outputs, {"value": ir.tensor(np.zeros(1, element))}, name=name,
                outputs=[ir.Value(name=f"{name}/output")],
            )  # fmt: skip
            node.graph.insert_before(node, [shape, fill])
            zeros = fill.outputs[0]
        node.replace_input_with(self.input_idx, zeros)
        prune(value.producer())
        if value.is_initializer():
            drop_if_unread(value)
        return Outcome(1)


class ExposeOutputs(IrSurgeon):
    """Makes the first output of nodes an output of the graph."""

    surgeon: Literal["ExposeOutputs"]
    names: list[str] = Field(min_length=1, description="nodes whose output to show")

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Appends the outputs."""
        return _show(model, [_node_named(model, name).outputs[0] for name in self.names])


class AddIntermediateTensorsToOutputs(IrSurgeon):
    """Makes tensors inside the graph outputs of it, to look at them."""

    surgeon: Literal["AddIntermediateTensorsToOutputs"]
    intermediate_tensor_to_add: list[str] | None = Field(None, description="the tensors; all of them by default")

    needs_types: ClassVar[bool] = True

    def operate(self, model: ir.Model) -> Outcome:
        """Appends the outputs."""
        made = {output.name: output for node in model.graph for output in node.outputs if output.name}
        wanted = self.intermediate_tensor_to_add
        if wanted is None:
            return _show(model, list(made.values()))
        return _show(model, [named(list(made.values()), name, "tensor") for name in wanted])


class RemoveInitializerFromInputs(IrSurgeon):
    """Takes weights out of the inputs of the graph, so that they become constants."""

    surgeon: Literal["RemoveInitializerFromInputs"]

    def operate(self, model: ir.Model) -> Outcome:
        """Removes inputs that have an initializer of the same name."""
        weights = [value for value in model.graph.inputs if value.is_initializer()]
        for value in weights:
            model.graph.inputs.remove(value)
        return Outcome(len(weights))


class InferShapes(IrSurgeon):
    """States the shapes and types of tensors that ONNX's shape inference finds."""

    surgeon: Literal["InferShapes"]

    def operate(self, model: ir.Model) -> Outcome:
        """Infers shapes and types."""
        before = _shapes(model)
        infer_shapes(model)
        return Outcome(sum(shape != before.get(name) for name, shape in _shapes(model).items()))


class RemoveShapes(IrSurgeon):
    """Takes out what the graph states of the shapes and types of tensors inside it."""

    surgeon: Literal["RemoveShapes"]

    def operate(self, model: ir.Model) -> Outcome:
        """Forgets shapes and types of all but inputs, outputs and weights."""
        stated = [value for value in _inner(model) if value.shape is not None or value.type is not None]
        for value in stated:
            value.shape = value.type = None
        return Outcome(len(stated))


class RemoveAllTensorValueShapes(IrSurgeon):
    """Takes out what the graph states of the shapes of tensors inside it; the types stay."""

    surgeon: Literal["RemoveAllTensorValueShapes"]

    def operate(self, model: ir.Model) -> Outcome:
        """Forgets shapes of all but inputs, outputs and weights."""
        stated = [value for value in _inner(model) if value.shape is not None]
        for value in stated:
            value.shape = None
        return Outcome(len(stated))


def infer_shapes(model: ir.Model) -> None:
    """States shapes and types that ONNX's inference finds; a graph that it cannot follow stays as it is."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _all_values(model: ir.Model) -> list[ir.Value]:
    made = [output for node in model.graph.all_nodes() for output in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *made]


def _inner(model: ir.Model) -> list[ir.Value]:
    return [output for node in model.graph for output in node.outputs if not output.is_graph_output()]


def _shapes(model: ir.Model) -> dict[str, tuple[str, str]]:
    return {value.name: (str(value.shape), str(value.type)) for value in _all_values(model) if value.name}


def _listed(values: Sequence[ir.Value]) -> str:
    return ", ".join(str(value.name) for value in values)


def named(values: Sequence[ir.Value], name: str, what: str) -> ir.Value:
    """Returns the value of that name.

    Raises:
        NotInGraph: there is none; `what` says what it would have been.
    """
    found = next((value for value in values if value.name == name), None)
    if found is None:
        raise NotInGraph(what, name, [str(value.name) for value in values])
    return found


def _numbered(values: Sequence[ir.Value], number: int, what: str) -> ir.Value:
    if number >= len(values):
        raise NotInGraph(what, str(number), [f"{at} ({value.name})" for at, value in enumerate(values)])
    return values[number]


def _node_named(model: ir.Model, name: str) -> ir.Node:
    found = next((node for node in model.graph if node.name == name), None)
    if found is None:
        raise NotInGraph("node", name, [str(node.name) for node in model.graph])
    return found


def _name_dimension(value: ir.Value, number: int, name: str) -> Outcome:
    import onnx_ir as ir

    dimensions = list(value.shape) if value.shape is not None else []
    if number >= len(dimensions):
        raise NotInGraph(f"dimension of '{value.name}'", str(number), [f"{at} ({one})" for at, one in enumerate(dimensions)])
    dimensions[number] = ir.SymbolicDim(name)
    value.shape = ir.Shape(dimensions)
    return Outcome(1)


def _show(model: ir.Model, values: Sequence[ir.Value]) -> Outcome:
    new = [value for value in dict.fromkeys(values) if not value.is_graph_output()]
    model.graph.outputs.extend(new)
    return Outcome(len(new), None if new else "they are outputs already")


def _leave_out(value: ir.Value, model: ir.Model) -> None:
    """Lets no node read the value any more, removing nodes that would read nothing at all."""
    if value.is_graph_output():
        raise CannotOperate("input-needed", f"the output '{value.name}' depends on nothing else", "remove that output as well")
    for use in list(value.uses()):
        node = use.node
        if node.graph is None:
            continue
        if all(one is None or one is value for one in node.inputs):
            for output in node.outputs:
                _leave_out(output, model)
            node.graph.remove(node, safe=True)
        elif _is_optional(node, use.idx, model):
            node.replace_input_with(use.idx, None)
        else:
            raise CannotOperate(
                "input-needed",
                f"{node.op_type} '{node.name}' cannot do without '{value.name}'",
                "ZeroOutInput feeds it zeros instead",
            )


def _is_optional(node: ir.Node, number: int, model: ir.Model) -> bool:
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return True  # ONNX Runtime's own operators: it checks them when it loads the graph
    inputs = schema.inputs
    return number < len(inputs) and inputs[number].option == onnx.defs.OpSchema.FormalParameterOption.Optional
