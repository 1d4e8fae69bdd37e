"""Walks all nodes of an ONNX graph with their element types: subgraphs and functions included, weights not needed."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from runner.targets.operator_kernels import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx

    Types = MutableMapping[str, str]
    Versions = Mapping[str, int]

# Attributes that name the element type of an output (TensorProto.DataType).
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
# Element types of outputs where neither an input nor an attribute says it.
_DEFAULT_TYPES = {"ConstantOfShape": "float", "EyeLike": "float", "RandomNormal": "float", "RandomUniform": "float",
                  "QuantizeLinear": "uint8", "Constant": "float"}  # fmt: skip
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
# ONNX Runtime leaves these for its fusions of quantised operators.
_NEVER_FOLDED = {"DequantizeLinear", "QuantizeLinear"}


@dataclass(frozen=True)
class TypedNode:
    """A node of an operator.

    Attributes:
        name: its name; where it has none, the output that it makes.
        domain: ``ai.onnx`` or another.
        operator: its operator.
        since: the version that defines the operator as the node means it; 0 where no schema is known.
        types: element types (``float16``) by type variable and parameter of the schema.
        attributes: its attributes, as Python values; graphs are left out.
        inputs: names of its inputs; an empty one is left out by the node.
        folded: its inputs are constants, so that ONNX Runtime computes it on loading.
    """

    name: str
    domain: str
    operator: str
    since: int
    types: Mapping[str, frozenset[str]]
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    folded: bool


@cache
def schemas() -> dict[tuple[str, str], list[Any]]:
    """Returns ONNX Runtime's schemas by domain and operator, the oldest version first."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    found = defaultdict(list)
    for schema in runtime.get_all_operator_schema():
        found[schema.domain or ONNX_DOMAIN, schema.name].append(schema)
    return {key: sorted(versions, key=lambda schema: int(schema.since_version)) for key, versions in found.items()}


def since_versions(domain: str, operator: str) -> list[int]:
    """Returns the versions in which an operator was defined anew, the oldest first."""
    return [int(schema.since_version) for schema in schemas().get((domain, operator), ())]


def typed_nodes(model: onnx.ModelProto, expand: Callable[[TypedNode], bool]) -> Iterator[TypedNode]:
    """Yields every node that computes something, in the order of the graph; `Constant` nodes compute nothing.

    Args:
        model: its weights may be missing.
        expand: says of a node whose operator ONNX defines by others whether those are yielded in its place.
    """
    versions = {one.domain or ONNX_DOMAIN: one.version for one in model.opset_import}
    functions = {(one.domain, one.name, one.overload): one for one in model.functions}
    walk = _Walk(functions, expand)
    yield from walk.graph(model.graph, ChainMap(), set(), versions, {})


@dataclass(frozen=True)
class _Walk:
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    expand: Callable[[TypedNode], bool]

    def graph(
        self,
        graph: onnx.GraphProto,
        outer: ChainMap[str, str],
        constants: set[str],
        versions: Versions,
        arguments: Mapping[str, onnx.AttributeProto],
        handed: Sequence[str] = (),
    ) -> Iterator[TypedNode]:
        """Yields the nodes of a graph; `outer` gets to know the types of its outputs.

        `handed` are the types of its inputs, as far as the node that it is a body of tells them; empty texts where it does not.
        """
        declared = {value.name: _declared(value) for value in (*graph.value_info, *graph.output)}
        told = zip(graph.input, chain(handed, repeat("")), strict=False)
        types = outer.new_child({value.name: kind for value, other in told if (kind := _declared(value) or other)})
        types.update({one.name: _element(one.data_type) for one in graph.initializer})
        given = {value.name for value in graph.input}
        fixed = constants - given | {one.name for one in graph.initializer if one.name not in given}
        yield from self.nodes(graph.node, types, declared, fixed, versions, arguments)
        outer.update({value.name: types[value.name] for value in graph.output if value.name in types})

    def nodes(
        self,
        nodes: Iterable[onnx.NodeProto],
        types: ChainMap[str, str],
        declared: Mapping[str, str],
        constants: set[str],
        versions: Versions,
        arguments: Mapping[str, onnx.AttributeProto],
    ) -> Iterator[TypedNode]:
        for node in nodes:
            domain = node.domain or ONNX_DOMAIN
            attributes = [arguments.get(one.ref_attr_name, one) if one.ref_attr_name else one for one in node.attribute]
            body = self.functions.get((node.domain, node.op_type, node.overload))
            if body is not None:
                for inner in self._called(node, body, types, constants, attributes):
                    yield replace(inner, name=f"{_name(node)}/{inner.name}")
            else:
                typed = _typed(node, domain, attributes, types, declared, constants, versions.get(domain, 1))
                if typed.folded or node.op_type == "Constant":
                    constants.update(node.output)
                body_of_operator = _operator_body(node, typed, types) if self.expand(typed) else None
                if body_of_operator is not None:
                    for inner in self._called(node, body_of_operator, types, constants, attributes):
                        yield replace(inner, name=typed.name)
                elif node.op_type != "Constant":
                    yield typed
                    yield from self._subgraphs(node, types, constants, versions, arguments)
            for name in node.output:
                if name and name not in types and declared.get(name):
                    types[name] = declared[name]

    def _subgraphs(
        self,
        node: onnx.NodeProto,
        types: ChainMap[str, str],
        constants: set[str],
        versions: Versions,
        arguments: Mapping[str, onnx.AttributeProto],
    ) -> Iterator[TypedNode]:
        """Yields the nodes of If, Loop and Scan; their last outputs are those of the node."""
        kinds = [types.get(name, "") for name in node.input]
        handed = {"Loop": ["int64", "bool", *kinds[2:]], "Scan": kinds}.get(node.op_type, [])
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from self.graph(graph, types, constants, versions, arguments, handed)
                behind = list(graph.output)[-len(node.output) :]
                types.update({
                    name: types[inner.name]
                    for name, inner in zip(node.output, behind, strict=False)
                    if inner.name in types
                })  # fmt: skip

    def _called(
        self,
        node: onnx.NodeProto,
        body: onnx.FunctionProto,
        types: ChainMap[str, str],
        constants: set[str],
        attributes: Sequence[onnx.AttributeProto],
    ) -> Iterator[TypedNode]:
        """Yields the nodes of a function for one call of it."""
        given = dict(zip(body.input, node.input, strict=False))
        own: ChainMap[str, str] = ChainMap({inner: types[name] for inner, name in given.items() if name in types})
        fixed = {inner for inner, name in given.items() if name in constants}
        arguments = {one.name: one for one in (*body.attribute_proto, *attributes)}
        versions = {one.domain or ONNX_DOMAIN: one.version for one in body.opset_import}
        declared = {value.name: _declared(value) for value in body.value_info}
        yield from self.nodes(body.node, own, declared, fixed, versions, arguments)
        types.update({name: own[inner] for name, inner in zip(node.output, body.output, strict=False) if inner in own})


def _typed(
    node: onnx.NodeProto,
    domain: str,
    attributes: Sequence[onnx.AttributeProto],
    types: Types,
    declared: Mapping[str, str],
    constants: set[str],
    version: int,
) -> TypedNode:
    """Returns the typed node, and notes the types of its outputs."""
    import onnx

    versions = [one for one in schemas().get((domain, node.op_type), ()) if int(one.since_version) <= version]
    schema = versions[-1] if versions else None
    has_graph = any(one.HasField("g") or one.graphs for one in node.attribute)
    values = {
        one.name: onnx.helper.get_attribute_value(one)
        for one in attributes
        if one.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) and not one.ref_attr_name
    }
    found: dict[str, set[str]] = defaultdict(set)
    for parameter, name in _parameters(schema.inputs if schema else (), node.input):
        if kind := types.get(name):
            found[parameter.typeStr].add(kind)
            found[parameter.name].add(kind)
    for parameter, name in _parameters(schema.outputs if schema else (), node.output):
        if kind := _output_type(schema, parameter, node, values, found) or declared.get(name):
            types[name] = kind
            found[parameter.typeStr].add(kind)
            found[parameter.name].add(kind)
    inputs = [name for name in node.input if name]
    folded = (
        bool(inputs)
        and set(inputs) <= constants
        and not has_graph
        and node.op_type not in _RANDOM | _NEVER_FOLDED
        and domain == ONNX_DOMAIN
    )
    return TypedNode(
        _name(node),
        domain,
        node.op_type,
        int(schema.since_version) if schema else 0,
        {key: frozenset(kinds) for key, kinds in found.items()},
        values,
        tuple(node.input),
        folded,
    )


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"(makes {node.output[0]})"


def _parameters(formal: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """Yields (formal parameter, value) of the values that are there; the last parameter may stand for several."""
    for at, name in enumerate(names):
        if name and formal and (at < len(formal) or formal[-1].option.name == "Variadic"):
            parameter = formal[min(at, len(formal) - 1)]
            if parameter.isHomogeneous:
                yield parameter, name


def _output_type(
    schema: Any, parameter: Any, node: onnx.NodeProto, values: Mapping[str, Any], found: Mapping[str, set[str]]
) -> str | None:
    """Returns the element type of an output; None where it is no tensor or nothing says it."""
    variable = parameter.typeStr
    if variable.startswith("tensor("):
        return str(variable[7:-1])
    if len(known := found.get(variable, set())) == 1:
        return next(iter(known))
    for name in _TYPE_ATTRIBUTES:
        if values.get(name):
            return _element(values[name])
    if hasattr(values.get("value"), "data_type"):
        return _element(values["value"].data_type)
    if node.op_type == "Constant":
        return "int64" if {"value_int", "value_ints"} & values.keys() else "float"
    if node.op_type in _DEFAULT_TYPES:
        return _DEFAULT_TYPES[node.op_type]
    allowed = [one.allowed_type_strs for one in schema.type_constraints if one.type_param_str == variable]
    only = allowed[0][0] if allowed and len(allowed[0]) == 1 else ""
    return only[7:-1] if only.startswith("tensor(") else None


def _operator_body(node: onnx.NodeProto, typed: TypedNode, types: Types) -> onnx.FunctionProto | None:
    """Returns how ONNX defines an operator by others, for this node; None where it does not."""
    import onnx

    if typed.domain != ONNX_DOMAIN or not typed.since:
        return None
    try:
        schema = onnx.defs.get_schema(typed.operator, typed.since)
    except onnx.defs.SchemaError:  # ONNX Runtime's own, which it keeps in ONNX's domain
        return None
    if schema.has_function:
        body: onnx.FunctionProto = schema.function_body
        return body
    if not schema.has_context_dependent_function:
        return None
    kinds = [
        onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(types[name].upper()), None).SerializeToString()
        if name in types
        else b""
        for name in node.input
    ]
    made = onnx.FunctionProto()
    made.ParseFromString(schema.get_context_dependent_function(node.SerializeToString(), kinds))
    return made if made.node else None


def _declared(value: onnx.ValueInfoProto) -> str:
    return _element(value.type.tensor_type.elem_type)


def _element(number: int) -> str:
    """Returns ONNX Runtime's word for an element type; empty where there is none."""
    import onnx

    return onnx.TensorProto.DataType.Name(number).lower() if number else ""
