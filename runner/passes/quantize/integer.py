"""Integer quantisation of ONNX graphs with onnxruntime.quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runner.errors import DataUnavailable
from runner.models.files import LARGE, external_files, read_graph, unlinked
from runner.models.handle import ModelHandle
from runner.passes.declaration import Batches, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.graph.node_names import check_node_names, entries_of, meant
from runner.passes.quantize.options import CalibrationOptions, QuantizationOptions
from runner.recipe.config import DataConfig

if TYPE_CHECKING:
    import onnx

# Types whose integer kernels on CPU are faster than their float ones when ranges are found at run time. The fused Attention and
# EmbedLayerNormalization are ONNX Runtime's own; ONNX's Attention has no integer form.
DYNAMIC_TYPES = ("Attention", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
# In transformers, only the products with weights: scores, softmax and normalisation lose too much in 8 bits. Other graphs, such
# as convolutional networks, are quantised as a whole, so that activations stay integers from one operator to the next.
TRANSFORMER_TYPES = ("Attention", "Conv", "EmbedLayerNormalization", "Gather", "Gemm", "MatMul")
_TRANSFORMER_EXTRA = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(TRANSFORMER_TYPES)}
_TRANSFORMER_SIGNS = ("Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax")
_MICROSOFT = "com.microsoft"
_Options = TypeVar("_Options", bound=QuantizationOptions)


def quantize_dynamic(model: ModelHandle, options: QuantizationOptions, context: PassContext) -> ModelHandle:
    """Quantises the weights of every graph; the ranges of activations are found at run time."""
    from onnxruntime import quantization

    def quantize(name: str, written: Path, options: QuantizationOptions) -> None:
        source, graph = _prepared(model.folder / name, options, written.parent)
        quantization.quantize_dynamic(
            source,
            written,
            op_types_to_quantize=_types(options, DYNAMIC_TYPES),
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            weight_type=quantization.QuantType[options.weight_type],
            nodes_to_quantize=_chosen(options.nodes_to_quantize, graph),
            nodes_to_exclude=_excluded(options, graph),
            use_external_data_format=_is_large(source),
            extra_options=_extra(options, graph),
        )

    return _each(model, options, context, quantize)


def quantize_static(model: ModelHandle, options: CalibrationOptions, context: PassContext) -> ModelHandle:
    """Quantises weights and activations; the ranges of activations are those seen in the calibration data.

    Raises:
        DataUnavailable: there is no calibration data.
    """
    from onnxruntime import quantization

    def quantize(name: str, written: Path, options: CalibrationOptions) -> None:
        source, graph = _prepared(model.folder / name, options, written.parent)
        transformer = any(node.op_type in _TRANSFORMER_SIGNS for node in graph.graph.node)
        weights_only = options.extra().get("MatMulConstBOnly", transformer)
        reader = calibration_reader(_batches(options, context))
        context.say(f"calibrating on {len(reader)} batches")
        quantization.quantize_static(
            source,
            written,
            reader,
            quant_format=quantization.QuantFormat[options.quant_format],
            op_types_to_quantize=_types(options, TRANSFORMER_TYPES if transformer else None),
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            activation_type=quantization.QuantType[options.activation_type],
            weight_type=quantization.QuantType[options.weight_type],
            nodes_to_quantize=_chosen(options.nodes_to_quantize, graph),
            nodes_to_exclude=_excluded(options, graph) + (_products_of_activations(graph) if weights_only else []),
            use_external_data_format=_is_large(source),
            calibrate_method=quantization.CalibrationMethod[options.calibrate_method],
            calibration_providers=options.calibration_providers,
            # One batch at a time: bounds the memory of the histograms, and lets batches differ in shape.
            extra_options={
                **(_TRANSFORMER_EXTRA if transformer else {}),
                **_extra(options, graph),
                **_overrides(model, options),
                "CalibStridedMinMax": 1,
            },
        )

    return _each(model, options, context, quantize)


def _each(
    model: ModelHandle, options: _Options, context: PassContext, quantize: Callable[[str, Path, _Options], None]
) -> ModelHandle:
    """Quantises the graphs of a model that hold a node to quantise.

    Args:
        model: of kind `onnx` or `genai`.
        options: name nodes and say how weights are stored.
        context: its scratch folder gets what comes between.
        quantize: `quantize(name, path, options)` writes the quantised form of the graph of that name to the path; its options
            name nodes of that graph only.

    Raises:
        InvalidRecipe: an option names a node that no graph has.
    """
    asked = {"nodes_to_quantize": options.nodes_to_quantize, "nodes_to_exclude": options.nodes_to_exclude}
    check_node_names(model, asked, context)

    def change(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
        own = options.model_copy(update={option: named and entries_of(name, named) for option, named in asked.items()})
        if options.nodes_to_quantize and not _chosen(own.nodes_to_quantize, graph):
            return graph  # to ONNX Runtime, no name means all of them
        if all(meant(node.name, own.nodes_to_exclude or ()) for node in graph.graph.node):
            context.say(f"{name}: left as it is")
            return graph
        folder = context.scratch / name
        folder.mkdir(parents=True)
        quantize(name, folder / "quantized.onnx", own)
        made = read_graph(folder / "quantized.onnx")
        context.say(f"{name}: {_told(made)}")
        return made

    precision = options.weight_type.removeprefix("Q").lower()
    return rewrite_each(model, context, change, options.external_data(), precision=precision)


def _overrides(model: ModelHandle, options: CalibrationOptions) -> dict[str, Any]:
    """Returns the quantisation of single tensors, from the options and from what MixedPrecisionOverrides left."""
    from onnxruntime.quantization import QuantType

    def typed(settings: dict[str, Any]) -> dict[str, Any]:
        return {key: QuantType[value] if key == "quant_type" else value for key, value in settings.items()}

    given = {**model.attributes.get("mixed_precision_overrides", {}), **(options.tensor_quant_overrides or {})}
    overrides = {tensor: [typed(settings) for settings in entries] for tensor, entries in given.items()}
    return {"TensorQuantOverrides": overrides} if overrides else {}


def _batches(options: CalibrationOptions, context: PassContext) -> Batches:
    named = options.data_config
    if named is None:
        raise DataUnavailable("static quantisation needs data to calibrate on", "set data_config")
    given: Any = named.model_dump(mode="json") if isinstance(named, DataConfig) else named
    return context.data(given)


def calibration_reader(batches: Iterable[dict[str, Any]]) -> Any:
    """Returns the batches as onnxruntime.quantization reads them: one by one, and by ranges of their numbers.

    They are counted first and read again then, so that no more than one is held at a time.

    Args:
        batches: can be gone through several times.

    Raises:
        DataUnavailable: there is not one batch.
    """
    from onnxruntime.quantization import CalibrationDataReader

    count = sum(1 for _ in batches)
    if not count:
        raise DataUnavailable("there is not one batch to calibrate on")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest: Iterator[dict[str, Any]] = iter(batches)
            self._at, self._end = 0, count

        def __len__(self) -> int:
            return count

        def get_next(self) -> dict[str, Any] | None:
            if self._at >= self._end:
                return None
            self._at += 1
            return next(self._rest, None)

        def set_range(self, start_index: int, end_index: int) -> None:
            if start_index != self._at:
                self._rest, self._at = islice(batches, start_index, None), start_index
            self._end = end_index

    return Reader()


def _prepared(path: Path, options: QuantizationOptions, folder: Path) -> tuple[Path, onnx.ModelProto]:
    """Returns the file to quantise, its constants folded and types inferred, and its graph without the weights."""
    path = unlinked(path, folder / "source")
    if not options.quant_preprocess:
        return path, read_graph(path, weights=False)
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(
        str(path),
        str(prepared),
        # Types are what the quantisers need; symbolic shapes fail on operators newer than its tables.
        skip_symbolic_shape=True,
        save_as_external_data=bool(external_files(path)),
    )
    graph = _with_types(read_graph(prepared, weights=False))
    _drop_needless_attributes(graph)
    prepared.write_bytes(graph.SerializeToString())
    return prepared, graph


def _with_types(graph: onnx.ModelProto) -> onnx.ModelProto:
    """States the types of what ONNX Runtime's own operators put out, which ONNX's shape inference does not know.

    Calibration sees only tensors whose type is stated. The first output of every fused operator is of the graph's float type.
    """
    import onnx

    known = {value.name for value in (*graph.graph.value_info, *graph.graph.output)}
    for node in graph.graph.node:
        if node.domain == _MICROSOFT and node.output[0] not in known:
            graph.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], _float_type(graph), None))
    return onnx.shape_inference.infer_shapes(graph)


def _drop_needless_attributes(graph: onnx.ModelProto) -> None:
    """Takes off the fused Attention what says the default: equal sizes of query, key and value, a rotation of no dimensions.

    With these attributes ONNX Runtime's quantiser leaves an Attention alone, or makes one that does not load.
    """
    import onnx

    for node in graph.graph.node:
        if node.op_type != "Attention" or node.domain != _MICROSOFT:
            continue
        for attribute in list(node.attribute):
            value = onnx.helper.get_attribute_value(attribute)
            equal_sizes = attribute.name == "qkv_hidden_sizes" and len(set(value)) == 1
            if equal_sizes or (attribute.name == "rotary_embedding_dim" and not value):
                node.attribute.remove(attribute)


def _float_type(graph: onnx.ModelProto) -> int:
    import onnx

    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)
    return int(onnx.TensorProto.FLOAT16 if halves else onnx.TensorProto.FLOAT)


def _is_large(graph: Path) -> bool:
    files = [graph, *(graph.parent / name for name in external_files(graph))]
    return sum(file.stat().st_size for file in files) >= LARGE


def _types(options: QuantizationOptions, default: Sequence[str] | None) -> list[str] | None:
    if options.op_types_to_quantize is not None:
        return list(options.op_types_to_quantize)
    if default is None and not options.op_types_to_exclude:
        return None
    known: Iterable[str] = default if default is not None else _static_types()
    return [name for name in known if name not in (options.op_types_to_exclude or ())]


def _static_types() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _chosen(asked: Sequence[str] | None, graph: onnx.ModelProto) -> list[str] | None:
    """Returns the names of the nodes that a list of names and patterns means; None where there is no list."""
    return [node.name for node in graph.graph.node if meant(node.name, asked)] if asked else None


def _excluded(options: QuantizationOptions, graph: onnx.ModelProto) -> list[str]:
    """Returns the nodes to leave alone: those asked for, and those whose operator has no integer form."""
    asked = _chosen(options.nodes_to_exclude, graph) or []
    return asked + [node.name for node in graph.graph.node if node.op_type == "Attention" and node.domain != _MICROSOFT]


def _products_of_activations(graph: onnx.ModelProto) -> list[str]:
    """Returns the MatMuls that no weight takes part in; the quantiser for QDQ does not heed MatMulConstBOnly itself."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]


def _extra(options: QuantizationOptions, graph: onnx.ModelProto) -> dict[str, Any]:
    """Returns onnxruntime.quantization's extra options, with what a tensor is taken for whose type is not stated."""
    return {"DefaultTensorType": _float_type(graph), **options.extra()}


def _told(graph: onnx.ModelProto) -> str:
    integer = sum(
        1 for node in graph.graph.node if "Integer" in node.op_type or node.op_type.startswith(("QLinear", "QAttention"))
    )
    pairs = sum(1 for node in graph.graph.node if node.op_type == "DequantizeLinear")
    return f"{integer} integer operators, {pairs} DequantizeLinear"
