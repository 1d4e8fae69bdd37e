"""Runs torch's ONNX exporters on a module with example inputs, and gives what they make readable names."""

from __future__ import annotations

import ast
import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidRecipe, Problem, RunFailed, TargetUnavailable
from runner.models.files import read_graph
from runner.passes.export.adapter_factors import has_factors, optimize_around_factors

if TYPE_CHECKING:
    import onnx
    import torch

# From here on ONNX itself has Attention and Gelu, the exporter emits them, and ONNX Runtime runs them in one kernel each.
FUSED_OPSET = 23
FIRST_DYNAMO_OPSET = 18  # earlier ones it converts back from 18, and what comes out need not be valid
LAST_TRACED_OPSET = 20
# The graph fusions of onnxruntime.transformers know attention as the older exporter spells it at this opset.
TORCHSCRIPT_OPSET = 17

# Where torch's exporter notes the modules that a node comes from, outermost first, the operator itself last.
_SCOPES = "pkg.torch.onnx.name_scopes"
_INDEXED = re.compile(r"/(\d+)(?=/|$)")


@dataclass(frozen=True)
class Export:
    """What the exporter is given.

    Attributes:
        module: the module, whose forward takes the inputs and gives tensors.
        args: positional example inputs.
        kwargs: example inputs by name, in the order of forward's parameters.
        inputs: names of the graph's inputs; those of nested inputs one after the other.
        outputs: names of its outputs; None leaves torch's own.
        axes: free axes: input or output name to axis to axis name.
        shapes: free axes in torch.export's nested form, where the script gives them so.
        sizes_as_text: axis names of outputs that are sizes in truth.
        as_far_as_possible: an axis that is called free though the module fixes its size is no error.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str] | None
    axes: Mapping[str, Mapping[int, str]]
    shapes: Any = None
    sizes_as_text: Sequence[str] = ()
    as_far_as_possible: bool = False

    def fixed(self) -> Export:
        """Returns the same without free axes."""
        return replace(self, axes={}, shapes=None)

    def placed(self, device: str | None, dtype: str | None) -> Export:
        """Returns the same with module and example moved to a device and cast to a type.

        Raises:
            InvalidRecipe: torch has no such type.
            TargetUnavailable: the device is not on this machine.
        """
        import torch

        place, kind = torch.device(device or "cpu"), torch_type(dtype)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise TargetUnavailable("device=cuda", "torch sees no CUDA device here", "leave the option device out")
        if place.type == "cpu" and kind is None:
            return self
        _place(self.module, place, kind)
        return replace(self, args=_moved(self.args, place, kind), kwargs=_moved(self.kwargs, place, kind))


def _place(module: torch.nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Moves and casts a module; the frequencies of a rotation stay in fp32, as transformers keeps them in any type."""
    frequencies = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    module.to(device, dtype)
    for owner, name, buffer in frequencies:
        setattr(owner, name, buffer.to(device))


def torch_type(name: str | None) -> torch.dtype | None:
    """Returns torch's type of that name.

    Raises:
        InvalidRecipe: there is none.
    """
    import torch

    found = getattr(torch, name.removeprefix("torch."), None) if name else None
    if name and not isinstance(found, torch.dtype):
        raise InvalidRecipe(
            Problem(
                "bad-option",
                f"OnnxConversion: torch_dtype '{name}' is no type of torch",
                remedy="use float32, float16 or bfloat16",
            )
        )
    return found


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if dtype and value.is_floating_point() else value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(one, device, dtype) for one in value)
    return {key: _moved(one, device, dtype) for key, one in value.items()} if isinstance(value, dict) else value


def export_graph(export: Export, opset: int, *, dynamo: bool, optimize: bool = True) -> onnx.ModelProto:
    """Returns the ONNX graph of a module, its free axes named.

    Args:
        export: module, example and names.
        opset: version of ONNX's operators.
        dynamo: by torch.export; otherwise by the older tracing exporter.
        optimize: fold constants and drop unused nodes.

    Raises:
        RunFailed: torch cannot export the module.
    """
    import torch

    try:
        with torch.no_grad(), _quiet():
            proto = _by_dynamo(export, opset, optimize) if dynamo else _by_tracing(export, opset, optimize)
    except Exception as error:  # the module is run, and it may be anybody's
        raise RunFailed(
            "export-failed",
            f"torch cannot export the model at opset {opset}: {_innermost(error)}",
            f"try another exporter (use_dynamo_exporter: {str(not dynamo).lower()}) or target_opset",
        ) from error
    _name_axes(proto, export)
    return proto


def _innermost(error: BaseException) -> str:
    """Returns the first line of what went wrong at first: torch's own errors tell the steps of its exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip(" -") for line in lines[: 2 if lines[0].endswith(":") else 1])


def _by_dynamo(export: Export, opset: int, optimize: bool) -> onnx.ModelProto:
    import torch

    # by default torch.export takes an axis of size 1 in the example for one that is always 1
    with torch.fx.experimental._config.patch(backed_size_oblivious=_has_free_axis_of_one(export)):
        program = _program(export, opset, optimize)
    proto = program.model_proto
    _name_nodes(proto)
    return proto


def _has_free_axis_of_one(export: Export) -> bool:
    import torch

    leaves = torch.utils._pytree.tree_leaves((export.args, export.kwargs))
    examples = zip(export.inputs, [one for one in leaves if isinstance(one, torch.Tensor)], strict=False)
    return any(one.shape[axis] == 1 for name, one in examples for axis in export.axes.get(name, ()) if axis < one.dim())


def _program(export: Export, opset: int, optimize: bool) -> torch.onnx.ONNXProgram:
    import torch

    program: torch.onnx.ONNXProgram = torch.onnx.export(
        export.module,
        export.args,
        kwargs=export.kwargs or None,
        dynamo=True,
        opset_version=opset,
        input_names=list(export.inputs),
        output_names=list(export.outputs) if export.outputs else None,
        dynamic_shapes=_dynamic_shapes(export),
        optimize=optimize and not has_factors(export.module),
        verbose=False,
    )
    if optimize and has_factors(export.module):
        optimize_around_factors(program)
    return program


def _by_tracing(export: Export, opset: int, optimize: bool) -> onnx.ModelProto:
    """Exports through a file, beside which torch puts the weights of a graph that is too large for protobuf."""
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        path = Path(folder) / "model.onnx"
        _trace(export, opset, optimize, path)
        return read_graph(path)


def _trace(export: Export, opset: int, optimize: bool, path: Path) -> None:
    import torch

    torch.onnx.export(
        export.module,
        export.args,
        str(path),
        kwargs=export.kwargs or None,
        dynamo=False,
        opset_version=opset,
        input_names=list(export.inputs),
        output_names=list(export.outputs) if export.outputs else None,
        dynamic_axes={name: dict(axes) for name, axes in export.axes.items()} or None,
        do_constant_folding=optimize and not has_factors(export.module),
    )


def _dynamic_shapes(export: Export) -> Any:
    """Returns the free axes in the structure of the example's arguments."""
    import torch

    if export.shapes is not None:
        return export.shapes
    if not any(export.axes.get(name) for name in export.inputs):
        return None
    names = iter(export.inputs)
    hint = torch.export.Dim.AUTO if export.as_far_as_possible else torch.export.Dim.DYNAMIC

    def free(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return dict.fromkeys(export.axes.get(next(names, ""), {}), hint)
        if isinstance(value, (tuple, list)):
            return type(value)(free(one) for one in value)
        return {key: free(one) for key, one in value.items()} if isinstance(value, dict) else None

    if export.kwargs:
        return {name: free(value) for name, value in export.kwargs.items()}
    args = tuple(free(value) for value in export.args)
    kinds = [one.kind for one in inspect.signature(export.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return args
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*args[:named], args[named:])  # to torch.export what *args takes is one argument


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Names nodes by the module they come from, as the tracing exporter does: /model/encoder/layer.0/output/dense/MatMul."""
    used: dict[str, int] = {}
    for node in proto.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
        path = modules[-1].replace(".", "/") if modules else ""
        place = _INDEXED.sub(r".\1", path)
        name = f"/{place}/{node.op_type}".replace("//", "/")
        count = used.get(name, 0)
        used[name] = count + 1
        node.name = f"{name}_{count}" if count else name
        node.ClearField("metadata_props")  # source lines and paths of this machine


def _name_axes(proto: onnx.ModelProto, export: Export) -> None:
    """Gives free axes the names that were asked for; torch.export numbers them. Sizes written as names become sizes."""
    renamed = dict(_asked_names(proto.graph.input, export.axes))
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]
    for value in proto.graph.output:
        dimensions = value.type.tensor_type.shape.dim
        for axis, name in export.axes.get(value.name, {}).items():
            if axis < len(dimensions) and dimensions[axis].dim_param:
                dimensions[axis].dim_param = name
        for dimension in dimensions:
            if dimension.dim_param in export.sizes_as_text:
                dimension.dim_value = int(dimension.dim_param)


def _asked_names(values: Iterable[onnx.ValueInfoProto], axes: Mapping[str, Mapping[int, str]]) -> Iterator[tuple[str, str]]:
    """Yields (torch's name, name asked for) of the free axes of some values."""
    for value in values:
        dimensions = value.type.tensor_type.shape.dim
        for axis, name in axes.get(value.name, {}).items():
            if axis < len(dimensions) and dimensions[axis].dim_param:
                yield dimensions[axis].dim_param, name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's warnings about its own deprecations out of the log."""
    import warnings

    import torch

    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", category)
        yield
