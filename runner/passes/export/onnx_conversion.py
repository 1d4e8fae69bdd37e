"""PyTorch to ONNX, through torch.onnx: a graph whose batch, sequence and image sizes stay free."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from runner.errors import InvalidRecipe, Problem, RunFailed, TargetUnavailable, did_you_mean
from runner.models.files import carry_companions, write_graph
from runner.models.handle import ModelHandle
from runner.models.inputs import IMAGE_TASKS, GraphInput, made_up, read_facts, sequence_length, source_inputs
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx
    import torch

# From here on ONNX itself has Attention and Gelu, the exporter emits them, and ONNX Runtime runs them in one kernel each.
FUSED_OPSET = 23
# The graph fusions of onnxruntime.transformers know attention as the older exporter spells it at this opset.
TORCHSCRIPT_OPSET = 17

# Where torch's exporter notes the modules that a node comes from, outermost first, the operator itself last.
_SCOPES = "pkg.torch.onnx.name_scopes"
_INDEXED = re.compile(r"/(\d+)(?=/|$)")

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "fill-mask": ("logits",),
    "feature-extraction": ("last_hidden_state",),
    "sentence-similarity": ("last_hidden_state",),
    "text-classification": ("logits",),
    "sequence-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "text-generation": ("logits",),
    "image-classification": ("logits",),
    "image-feature-extraction": ("last_hidden_state",),
}


class OnnxConversionOptions(ExternalDataOptions):
    """Options of OnnxConversion."""

    target_opset: int | None = Field(
        None,
        ge=11,
        le=25,
        description=f"ONNX opset; {FUSED_OPSET} by default, whose Attention and Gelu ONNX Runtime runs in one kernel each "
        f"({TORCHSCRIPT_OPSET} with the older exporter)",
    )
    use_dynamo_exporter: bool = Field(True, description="export with torch.export; false uses the older tracing exporter")
    torch_dtype: str | None = Field(None, description="cast the model before export: float32, float16 or bfloat16")
    device: str | None = Field(None, description="device to export on: cpu (default) or cuda")
    dynamic: bool = Field(True, description="leave batch, sequence and image sizes free; false fixes the example's")
    optimize: bool = Field(True, description="fold constants and drop unused nodes after the export (dynamo exporter)")
    past_key_value_name: str = Field("past_key_values", description="name of the cache input of models that have one")
    dynamic_axes: dict[str, dict[int, str]] | None = Field(
        None, description="free axes of a scripted model, over those of its io_config: name to axis to axis name"
    )

    retired: ClassVar[Mapping[str, str]] = {
        "use_device": "device names it",
        "parallel_jobs": "one model is exported at a time",
        "merge_adapter_weights": "adapters are merged when the model is loaded",
        "merge_components": "one graph is exported",
        "save_metadata_for_token_generation": "the attributes of the model travel with it",
        "script_dir": "input_model.model_script says where code is",
        "user_script": "input_model.model_script says where code is",
        "input_names": "input_model.io_config names the inputs",
        "output_names": "input_model.io_config names the outputs",
        "input_shapes": "input_model.io_config gives the shapes",
        "input_types": "input_model.io_config gives the types",
        "input_tensor_func": "input_model.dummy_inputs_func gives the example",
    }


@dataclass(frozen=True)
class Export:
    """What the exporter is given.

    Attributes:
        module: the module, whose forward takes the inputs and gives plain tensors.
        args: positional example inputs.
        kwargs: example inputs by name.
        inputs: names of the graph's inputs.
        outputs: names of its outputs; None leaves torch's own.
        axes: free axes: input or output name to axis to axis name.
        shapes: free axes in torch.export's nested form, for inputs that are no plain tensors.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[str]
    outputs: list[str] | None
    axes: dict[str, dict[int, str]]
    shapes: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)


def convert(model: ModelHandle, options: OnnxConversionOptions, context: PassContext) -> ModelHandle:
    """Exports the model to `model.onnx`; configuration, tokenizer and processor files go along.

    Raises:
        InvalidRecipe: the task, or a scripted model's inputs, are not known.
        TargetUnavailable: `device` is not on this machine.
        RunFailed: torch cannot export the model.
    """
    opset = options.target_opset or (FUSED_OPSET if options.use_dynamo_exporter else TORCHSCRIPT_OPSET)
    fused = options.use_dynamo_exporter and opset >= FUSED_OPSET
    export = _of_transformers(model, options, fused) if model.kind == "hf" else _of_script(model, options)
    export = _placed(export, options)
    if not options.dynamic:
        export = Export(export.module, export.args, export.kwargs, export.inputs, export.outputs, {})
    context.say(f"exporting at opset {opset}")
    proto = _export(export, opset, options)
    if options.dynamic:
        _name_axes(proto, export.axes)
    write_graph(proto, context.output / "model.onnx", options.external_data())
    if model.kind == "hf":
        carry_companions(model.folder, context.output)
    attributes = {**model.attributes, **_facts(model), "opset": opset}
    for key in ("load_kwargs", "model_script", "model_loader", "dummy_inputs_func", "io_config"):
        attributes.pop(key, None)
    return ModelHandle("onnx", context.output, "model.onnx", model.task, attributes)


def _facts(model: ModelHandle) -> dict[str, Any]:
    facts = read_facts(model.folder) if model.kind == "hf" else {}
    inner = facts.get("text_config") or facts
    names = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads")
    known = {name: inner[name] for name in names if inner.get(name) is not None}
    if facts.get("architectures"):
        known["architecture"] = facts["architectures"][0]
    return known


def _of_transformers(model: ModelHandle, options: OnnxConversionOptions, fused: bool) -> Export:
    from runner.models.torch_source import load_torch

    task = (model.task or "feature-extraction").removesuffix("-with-past")
    if task not in OUTPUTS:
        raise InvalidRecipe(
            Problem("unknown-task", f"models for '{task}' are not converted", remedy=did_you_mean(task, OUTPUTS))
        )
    handle = ModelHandle(model.kind, model.folder, model.file, task, model.attributes)
    module = load_torch(handle)
    if task not in IMAGE_TASKS:
        module.set_attn_implementation("sdpa" if fused else "eager")
    given = source_inputs(handle)
    sizes = {"batch": 2, "sequence": 16} if options.dynamic else {"batch": 1, "sequence": sequence_length(model.folder, 128)}
    example = _tensors(made_up(given, model.folder, sizes))
    if options.dynamic and "attention_mask" in example:
        example["attention_mask"][1, 9:] = 0
    outputs = list(OUTPUTS[task])
    axes = {one.name: _free_axes(one) for one in given}
    forward = _decode if task == "text-generation" else _encode
    return Export(_plain(module, forward, list(example), outputs), (), example, list(example), outputs, axes)


def _encode(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    return module(**inputs, return_dict=True)


def _decode(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Runs a language model without its cache.

    Positions are given for every sequence: those that the model makes up have a batch of one, which the exporter's rotary
    embedding keeps, and ONNX Runtime refuses for larger batches.
    """
    import torch

    ids = inputs["input_ids"]
    positions = {}
    if "position_ids" in inspect.signature(module.forward).parameters:
        positions["position_ids"] = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0).expand(ids.shape[0], -1)
    return module(**inputs, **positions, use_cache=False, return_dict=True)


def _free_axes(one: GraphInput) -> dict[int, str]:
    return {axis: name for axis, name in enumerate(one.shape) if isinstance(name, str)}


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _plain(
    module: torch.nn.Module,
    run: Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> torch.nn.Module:
    """Wraps a transformers module so that its forward takes `inputs` in this order and gives the tensors `outputs`."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            given = {**dict(zip(inputs, args, strict=False)), **kwargs}
            result = run(self.model, given)
            return tuple(result[name] for name in outputs)

    wrapped = Plain()
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in inputs]
    wrapped.forward = _with_signature(wrapped.forward, inspect.Signature(parameters))  # type: ignore[method-assign]
    return wrapped.eval()


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Returns the function with named parameters, which torch.export reads from its signature."""

    def named(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        return function(*bound.args)

    named.__signature__ = signature  # type: ignore[attr-defined]
    return named


@dataclass(frozen=True)
class ScriptedModel:
    """What a script's `io_config` and `dummy_inputs_func` functions are given, when they take an argument.

    Attributes:
        model_path: the path of the input model.
        task: its task.
        model_attributes: its attributes.
    """

    model_path: str
    task: str | None
    model_attributes: dict[str, Any]


def _of_script(model: ModelHandle, options: OnnxConversionOptions) -> Export:
    from runner.models.torch_source import load_torch

    module = load_torch(model)
    settings = _io_config(model)
    args, kwargs = _example(model, settings)
    names = settings.get("input_names") or list(kwargs)
    if not names:
        names = list(inspect.signature(module.forward).parameters)[: len(args)]
    axes = {name: {int(axis): str(label) for axis, label in free.items()} for name, free in _axes(settings).items()}
    axes |= options.dynamic_axes or {}
    shapes = settings.get("dynamic_shapes")
    return Export(module, args, kwargs, list(names), settings.get("output_names"), axes, shapes)


def _axes(settings: Mapping[str, Any]) -> Mapping[str, Mapping[Any, Any]]:
    free = settings.get("dynamic_axes") or {}
    return {
        name: axes if isinstance(axes, Mapping) else {axis: f"{name}_{axis}" for axis in axes} for name, axes in free.items()
    }


def _io_config(model: ModelHandle) -> Mapping[str, Any]:
    named = model.attributes.get("io_config") or {}
    if isinstance(named, str):
        named = _call_script(model, named)
    if not isinstance(named, Mapping):
        raise InvalidRecipe(Problem("bad-io-config", f"io_config is a {type(named).__name__}; a mapping was expected"))
    return named


def _call_script(model: ModelHandle, name: str) -> Any:
    from runner.models.torch_source import script_function

    script = Path(model.attributes["model_script"])
    function = script_function(script, name, model.attributes.get("script_dir"))
    path = str(model.attributes.get("model_path") or model.folder)
    takes = inspect.signature(function).parameters
    try:
        return function(ScriptedModel(path, model.task, model.attributes)) if takes else function()
    except Exception as error:
        raise RunFailed("script-failed", f"{script}: {name}() raised {type(error).__name__}: {error}") from error


def _example(model: ModelHandle, settings: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns (positional, named) example inputs: the script's, or made up from the shapes in io_config."""
    name = model.attributes.get("dummy_inputs_func")
    if name:
        example = _call_script(model, name)
        if isinstance(example, Mapping):
            return (), dict(example)
        return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})
    names, shapes = settings.get("input_names"), settings.get("input_shapes")
    if not names or not shapes:
        raise InvalidRecipe(
            Problem(
                "no-example-inputs",
                "the inputs of the scripted model are not known",
                remedy="set input_model.dummy_inputs_func, or input_names and input_shapes in input_model.io_config",
            )
        )
    types = settings.get("input_types") or ["float32"] * len(names)
    inputs = [GraphInput(*one) for one in zip(names, types, map(tuple, shapes), strict=True)]
    return tuple(_tensors(made_up(inputs, model.folder)).values()), {}


def _placed(export: Export, options: OnnxConversionOptions) -> Export:
    """Casts and moves the module and the example."""
    import torch

    device = torch.device(options.device or "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TargetUnavailable("device=cuda", "torch sees no CUDA device here", "leave the option device out")
    dtype = getattr(torch, options.torch_dtype, None) if options.torch_dtype else None
    if options.torch_dtype and not isinstance(dtype, torch.dtype):
        raise InvalidRecipe(
            Problem(
                "bad-option",
                f"OnnxConversion: torch_dtype '{options.torch_dtype}' is no type of torch",
                remedy="use float32, float16 or bfloat16",
            )
        )
    if device.type == "cpu" and dtype is None:
        return export

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype) if dtype and value.is_floating_point() else value.to(device)
        if isinstance(value, (tuple, list)):
            return type(value)(move(one) for one in value)
        return {key: move(one) for key, one in value.items()} if isinstance(value, dict) else value

    export.module.to(device, dtype)
    return Export(
        export.module, move(export.args), move(export.kwargs), export.inputs, export.outputs, export.axes, export.shapes
    )


def _export(export: Export, opset: int, options: OnnxConversionOptions) -> onnx.ModelProto:
    import torch

    try:
        with torch.no_grad(), _quiet():
            if options.use_dynamo_exporter:
                return _by_dynamo(export, opset, options)
            return _by_tracing(export, opset)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        other = "false" if options.use_dynamo_exporter else "true"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunFailed(
            "export-failed",
            f"torch cannot export the model at opset {opset}: {first}",
            f"try another exporter (use_dynamo_exporter: {other}) or target_opset",
        ) from error


def _by_dynamo(export: Export, opset: int, options: OnnxConversionOptions) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        export.module,
        export.args,
        kwargs=export.kwargs or None,
        dynamo=True,
        opset_version=opset,
        input_names=export.inputs,
        output_names=export.outputs,
        dynamic_shapes=_dynamic_shapes(export),
        optimize=options.optimize,
        verbose=False,
    )
    proto = program.model_proto
    _name_nodes(proto)
    return proto


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


def _dynamic_shapes(export: Export) -> Any:
    import torch

    if export.shapes is not None:
        return _int_axes(export.shapes)
    if not any(export.axes.get(name) for name in export.inputs):
        return None

    def free(name: str) -> dict[int, Any]:
        return dict.fromkeys(export.axes.get(name, {}), torch.export.Dim.DYNAMIC)

    if export.kwargs:
        return {name: free(name) for name in export.kwargs}
    return tuple(free(name) for name in export.inputs)


def _int_axes(shapes: Any) -> Any:
    """JSON has no integer keys: returns the nested shapes with axes as integers."""
    if isinstance(shapes, Mapping):
        return {int(key) if str(key).lstrip("-").isdigit() else key: _int_axes(value) for key, value in shapes.items()}
    return [_int_axes(one) for one in shapes] if isinstance(shapes, list) else shapes


def _by_tracing(export: Export, opset: int) -> onnx.ModelProto:
    import io

    import onnx
    import torch

    written = io.BytesIO()
    args = (*export.args, *(export.kwargs[name] for name in export.inputs if name in export.kwargs))
    torch.onnx.export(
        export.module,
        args,
        written,
        dynamo=False,
        opset_version=opset,
        input_names=export.inputs,
        output_names=export.outputs,
        dynamic_axes=export.axes or None,
        do_constant_folding=True,
    )
    return onnx.load_from_string(written.getvalue())


def _name_axes(proto: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Gives free axes of inputs the names that were asked for; torch.export numbers them."""
    renamed: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, name in axes.get(value.name, {}).items():
            dimension = value.type.tensor_type.shape.dim[axis]
            if dimension.dim_param:
                renamed[dimension.dim_param] = name
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's warnings about its own deprecations out of the log."""
    import warnings

    import torch

    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", category)
        yield


PASS = Pass(
    name="OnnxConversion",
    summary="Converts a PyTorch model to ONNX with torch.onnx, batch and sequence sizes left free.",
    options=OnnxConversionOptions,
    apply=convert,
    takes=("hf", "pytorch"),
    gives="onnx",
    packages=("torch", "transformers", "onnx", "onnxscript"),
)
