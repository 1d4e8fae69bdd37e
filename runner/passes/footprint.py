"""What passes make of a model's size, and the memory they take for it: one rule a pass, in one literal table.

The rules are arithmetic on numbers of weights and import no pass, so that a whole catalogue is estimated in an instant. Factors
in them are measured; docs/engine.md says how well they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from runner.models.files import LARGE as BESIDE_THE_GRAPH
from runner.models.mapped_weights import LARGE
from runner.models.weight_count import WeightCount

Options = Mapping[str, Any]
FLOAT_BYTES: Mapping[str, float] = {"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2}

_SENSITIVE = 0.2  # share of a decoder's matrices that `mixed_layers` and `k_quant_mixed` keep in 8 bits
_TORCH = 1.85  # times the weights in fp32 that a pass holds which loads, changes and writes them
_DYNAMO = 350e6  # bytes that the newer exporter holds by itself
_BUILDER = 240e6  # bytes that onnxruntime-genai and its builder hold by themselves
_STREAMED = 4.0  # bytes a weight of the largest matrix, for what is quantised while it is written
_WEIGHT_ROUNDED = 8.0  # bytes a weight of the largest matrix, where a graph's weights lie beside it
_WAITING = 0.5e9  # bytes of weights that are collected for one file
_ANSWERS = 2.0e9  # bytes of answers over a large vocabulary, of eight windows of text
_CODES_TAKEN = 0.5  # bytes a weight of the largest matrix, where the builder takes codes over
_LOOKED_AT = 0.9e9  # bytes for weights that are looked at where they lie, pages of their files included
_TURNED = 7.0  # bytes a weight of the largest matrix, for it before and after a rotation
_A_LAYER = 80.0  # bytes a weight of a decoder layer, for it in fp32 and the factors of its largest Hessian
_LAYERS = 30.0  # about as many as a decoder of a billion weights or more has
# Times the largest component of a pipeline, by the UNet of Stable Diffusion v1.4.
_PART_EXPORTED, _PART_FUSED, _PART_INFERRED, _PART_HALVED, _PART_INTEGER = 2.0, 1.1, 6.0, 3.4, 3.9
_NO_CODES = "directml"  # has no kernel that looks an embedding up in codes
_FLOAT = 2.0  # bytes from which on a weight is not quantised


@dataclass(frozen=True)
class Stored:
    """A model between two steps: its weights, and the bytes that a weight of each kind takes.

    Attributes:
        weights: how many there are of each kind.
        embedding, head, linear, convolution, rest: bytes a weight, with its part of scales and zero points.
        shared: a tied head and its embedding are stored once.
        upgraded: share of the matrices that an earlier step chose for 8 bits.
        share: share of the largest component, where components are worked on one at a time.
    """

    weights: WeightCount
    embedding: float
    head: float
    linear: float
    convolution: float
    rest: float
    shared: bool = True
    upgraded: float = 0.0
    share: float = 1.0

    @classmethod
    def plain(cls, weights: WeightCount, each: float, share: float = 1.0) -> Stored:
        """Returns a model that stores all weights alike."""
        return cls(weights, each, each, each, each, each, share=share)

    @property
    def size(self) -> float:
        """Returns the bytes on disk."""
        count = self.weights
        head = count.head if not count.tied or self.shared else count.embedding
        return (
            count.embedding * self.embedding
            + head * self.head
            + count.linear * self.linear
            + count.convolution * self.convolution
            + count.rest * self.rest
        )

    @property
    def largest(self) -> float:
        """Returns about how many weights the largest matrix has."""
        count = self.weights
        return max(count.embedding, count.head, count.linear / 100)

    @property
    def stays_mapped(self) -> bool:
        """Returns whether passes read the weights where they lie in the files, instead of from a copy in fp32."""
        return self.weights.total >= LARGE and not self.in_components

    @property
    def in_fp32(self) -> float:
        """Returns the bytes of all weights, or of the largest component's, in fp32."""
        return 4.0 * self.weights.total * self.share

    @property
    def in_components(self) -> bool:
        """Returns whether it is a pipeline, whose components are worked on one at a time."""
        return self.share < 1.0

    @property
    def quantised(self) -> bool:
        """Returns whether matrices are stored as codes."""
        return self.linear < _FLOAT

    @property
    def floats(self) -> float:
        """Returns the bytes of the embedding, the head and the convolutions, as far as they are in floating point."""
        count = self.weights
        heads = 0 if count.tied and self.shared else count.embedding if count.tied else count.head
        each = ((count.embedding, self.embedding), (heads, self.head), (count.convolution, self.convolution))
        return sum(many * size for many, size in each if size >= _FLOAT)


@dataclass(frozen=True)
class Effect:
    """What a step does.

    Attributes:
        stored: the model that it leaves.
        memory: bytes that it holds at its peak, beside the worker's libraries.
        scratch: bytes that it writes beside its result and takes away again.
        linked: bytes of its result that are hard links to files of the model that comes in.
        passed_on: bytes of its result that are so as well where the next step alone reads it; see `PassContext.outlasts`.
        spends: bytes of the model that comes in that it can give up while it writes.
    """

    stored: Stored
    memory: float
    scratch: float = 0.0
    linked: float = 0.0
    passed_on: float = 0.0
    spends: float = 0.0


Rule = Callable[[Stored, Options, str], Effect]  # the model that comes in, options, name of the target


_HALF = 2.0  # bytes of the smallest floating-point weight


def in_blocks(bits: int, block: int, scale: float, zero_points: bool) -> float:
    """Returns the bytes that a weight takes in blocks with one scale, and one zero point of as many bits, each."""
    return bits / 8 + (scale + (bits / 8 if zero_points else 0)) / block


# --- language models -------------------------------------------------------------------------------------------------


def _builder_options(options: Options) -> dict[str, Any]:
    """The builder's options that somebody set; those of extra_options win, and Olive's `int4_` names mean the same."""
    named: dict[str, Any] = {}
    for given in (options, options.get("extra_options") or {}):
        named |= {key.removeprefix("int4_"): value for key, value in given.items() if value is not None}
    if "tied_embeddings" in named:
        named.setdefault("shared_embeddings", named["tied_embeddings"])
    return named


def _model_builder(model: Stored, options: Options, target: str) -> Effect:
    chosen = _builder_options(options)
    precision = str(chosen.get("precision", "fp32"))
    if chosen.get("metadata_only"):
        return Effect(model, 0)
    around = FLOAT_BYTES.get(precision) or (4.0 if target == "cpu" else 2.0)
    in_two_graphs = model.weights.convolution > 0  # Whisper: encoder and decoder
    built = replace(Stored.plain(model.weights, around, model.share), shared=not in_two_graphs)
    if model.quantised:
        return _built_from_codes(model, built, around, target)
    if precision in FLOAT_BYTES:
        return Effect(built, _BUILDER + _STREAMED * model.largest)
    tied, asked = model.weights.tied, chosen.get("shared_embeddings")
    linear, head = _builder_scheme(chosen, 8 if precision == "int8" else 4, around)
    shared = tied and target != _NO_CODES and (asked is not False if precision == "int4" else asked is True)
    apart = (
        in_blocks(8, int(chosen.get("block_size", 32)), around, zero_points=False) if chosen.get("embedding_bits") else around
    )
    built = replace(built, linear=linear, head=head, embedding=head if shared else apart, shared=shared)
    own_way = chosen.get("use_qdq") or "Gather" in (chosen.get("op_types_to_quantize") or ())
    if own_way:
        return Effect(built, _BUILDER + 2.3 * model.in_fp32)
    return Effect(built, _BUILDER + _STREAMED * model.largest, spends=model.size)


def _builder_scheme(chosen: Options, bits: int, scale: float) -> tuple[float, float]:
    """Returns the bytes of a weight of the matrices, and of the head."""
    method = str(chosen.get("algo_config", "default"))
    zero_points = method.startswith(("k_quant", "hqq")) or chosen.get("is_symmetric") is False
    mixed = chosen.get("matmul_mixed_precision") or {}
    if isinstance(mixed, str):
        mixed = dict(part.split(":", 1) for part in mixed.split(",") if ":" in part)
    eight_head = mixed.get("last_matmul") == "int8" or method in ("rtn_last", "k_quant_last", "k_quant_mixed")
    eight_layers = mixed.get("mixed_layers") == "int8" or method == "k_quant_mixed"
    block = int(chosen.get("block_size", 32))
    low, high = (in_blocks(width, block, scale, zero_points) for width in (bits, 8))
    return (low + _SENSITIVE * (high - low) if eight_layers else low), (high if eight_head else low)


def _built_from_codes(model: Stored, built: Stored, around: float, target: str) -> Effect:
    """The builder keeps the codes of a quantised checkpoint; what is not quantised there gets the graph's own type."""
    head = model.head if model.head < _FLOAT else around
    embedding = model.embedding if model.embedding < _FLOAT and target != _NO_CODES else around
    shared = model.shared and head < _FLOAT and target != _NO_CODES
    made = replace(built, linear=model.linear, head=head, embedding=embedding, shared=shared)
    held = _BUILDER + min(_WAITING, 0.1 * model.size) + _CODES_TAKEN * model.largest
    return Effect(made, held, scratch=0.1 * model.size, spends=model.size)


def _codes(options: Options, bits: int, block: int, model: Stored) -> float:
    """Bytes of a weight in Olive's checkpoint layout: scales are fp32."""
    group = int(options.get("group_size") or block)
    high = in_blocks(8, group, 4, zero_points=not options.get("sym"))
    low = in_blocks(int(options.get("bits") or bits), group, 4, zero_points=not options.get("sym"))
    return low + model.upgraded * max(0.0, high - low)


def _gptq(model: Stored, options: Options, target: str) -> Effect:
    each = _codes(options, 4, 128, model)
    head = options.get("lm_head") and model.head >= _FLOAT
    made = replace(model, linear=each, rest=4)
    if head:
        made = replace(made, head=each, shared=False)
    if model.stays_mapped:
        return Effect(made, _WAITING + _A_LAYER * model.weights.linear / _LAYERS, passed_on=made.floats)
    made = _float_in_fp32(made)
    return Effect(made, _TORCH * model.in_fp32, passed_on=made.floats)


def _rtn(model: Stored, options: Options, target: str) -> Effect:
    each = _codes(options, 4, 128, replace(model, upgraded=0.0))
    made = model if model.quantised else replace(model, linear=each)
    if options.get("lm_head"):
        made = replace(made, head=each, shared=model.shared and bool(options.get("embeds")))
    if options.get("embeds"):
        made = replace(made, embedding=each)
    linked = model.weights.linear * model.linear if model.quantised else 0.0  # the codes that stay
    outer = model.quantised and options.get("lm_head") and options.get("embeds")
    spent = replace(model, linear=0, convolution=0, rest=0).size if outer else 0.0
    held = min(_WAITING, made.size) + 6.0 * model.largest
    return Effect(made, held, linked=linked, passed_on=made.floats, spends=spent)


def _awq(model: Stored, options: Options, target: str) -> Effect:
    if not options.get("export_compatible"):
        return _gptq(model, options, target)
    return _pruned(model, options, target)  # changes the layers in the same way, one at a time


def _float_in_fp32(model: Stored) -> Stored:
    """Checkpoints of quantised models keep what is not quantised in fp32."""

    def wide(each: float) -> float:
        return 4.0 if each >= _FLOAT else each

    return replace(
        model,
        embedding=wide(model.embedding),
        head=wide(model.head),
        convolution=wide(model.convolution),
        rest=wide(model.rest),
    )


def _in_torch(model: Stored, options: Options, target: str) -> Effect:
    """The weights are loaded, changed and written in fp32."""
    return Effect(Stored.plain(model.weights, 4, model.share), _TORCH * model.in_fp32)


def _rotated(model: Stored, options: Options, target: str) -> Effect:
    """The weights are rotated and written in fp32, those of a large model a layer at a time."""
    made = Stored.plain(model.weights, 4, model.share)
    held = (
        _WAITING + 12.0 * model.weights.linear / _LAYERS + _TURNED * model.largest if model.stays_mapped else _TORCH * made.size
    )
    return Effect(replace(made, shared=False), held)


def _sliced(model: Stored, options: Options, target: str) -> Effect:
    """Weights are turned as by a rotation, and written narrower, in the type that they have."""
    kept = 1.0 - float(options.get("sparsity") or 0.0)
    count = model.weights
    head = count.embedding if count.tied else count.head
    embedding, head, linear = (int(kept * one) for one in (count.embedding, head, count.linear))
    narrow = WeightCount(embedding, head, linear, count.convolution, count.rest)
    held = _rotated(model, options, target).memory if model.stays_mapped else _TORCH * model.in_fp32
    return Effect(replace(model, weights=narrow), held)


def _pruned(model: Stored, options: Options, target: str) -> Effect:
    if model.stays_mapped:
        return Effect(model, _WAITING + _A_LAYER * model.weights.linear / _LAYERS)
    return _in_torch(model, options, target)


def _select(model: Stored, options: Options, target: str) -> Effect:
    """Places are chosen on an outline; weights are looked at where they lie, and a large model runs layer by layer."""
    made, algorithm = replace(model, upgraded=_SENSITIVE), str(options.get("algorithm"))
    if algorithm.startswith(("k_quant", "high_precision")):
        return Effect(made, 0.0, linked=model.size)
    if algorithm != "kld_gradient":
        return Effect(made, _LOOKED_AT, linked=model.size)
    if model.stays_mapped:
        return Effect(made, _ANSWERS + 40.0 * model.weights.linear / _LAYERS, linked=model.size)
    return Effect(made, 1.4 * model.in_fp32, linked=model.size)


def _finetune(model: Stored, options: Options, target: str) -> Effect:
    """Weights in fp32, activations, and an adapter with its optimiser's state; the adapter lies over the same weights."""
    return Effect(model, 2.0 * model.in_fp32, linked=model.size)


def _finetune_rounded(model: Stored, options: Options, target: str) -> Effect:
    """The weights below the adapter may be rounded ones, in files of their own."""
    return replace(_finetune(model, options, target), linked=0.0)


# --- graphs ----------------------------------------------------------------------------------------------------------


def _export(model: Stored, options: Options, target: str) -> Effect:
    each = FLOAT_BYTES.get(str(options.get("torch_dtype") or "fp32"), 4)
    exporter = 0 if options.get("use_dynamo_exporter") is False else _DYNAMO
    times = _PART_EXPORTED if model.in_components else 5.0
    made = replace(Stored.plain(model.weights, each, model.share), shared=False)
    return Effect(made, exporter + times * model.in_fp32)


def _kept(copies: float) -> Rule:
    """A pass that leaves the weights as they are and holds them so many times."""
    return lambda model, options, target: Effect(model, copies * model.size * model.share)


def _halved(model: Stored, options: Options, target: str) -> Effect:
    half = replace(
        model,
        embedding=min(2.0, model.embedding),
        head=min(2.0, model.head),
        linear=min(2.0, model.linear),
        convolution=min(2.0, model.convolution),
        rest=min(2.0, model.rest),
    )
    return Effect(half, 2.5 * model.size * model.share)


def _fused(model: Stored, options: Options, target: str) -> Effect:
    halves = bool(options.get("float16"))
    made = _halved(model, options, target).stored if halves else model
    infers = (options.get("optimization_options") or {}).get("enable_shape_inference", True)
    of_part = _PART_INFERRED if infers else _PART_HALVED if halves else _PART_FUSED
    return Effect(made, (of_part if model.in_components else 8.5) * model.size * model.share)


def _integers(default: tuple[str, ...]) -> Rule:
    """8-bit weights with one scale a tensor or channel, of these operator types where the options name none."""

    def rule(model: Stored, options: Options, target: str) -> Effect:
        types = options.get("op_types_to_quantize") or default
        made = model
        if {"MatMul", "Gemm"} & set(types):
            made = replace(made, linear=1, head=1)
        if "Conv" in types:
            made = replace(made, convolution=1)
        if {"Gather", "EmbedLayerNormalization"} & set(types):
            made = replace(made, embedding=1)
        return Effect(made, (_PART_INTEGER if model.in_components else 7.0) * model.size * model.share)

    return rule


def _blocks(bits: int, block: int, method: Literal["zero points", "symmetric"], *, gathers: bool = False) -> Rule:
    """Block-quantised MatMul, with defaults of its options, and embedding, where it `gathers`. Integers stay as they are."""

    def rule(model: Stored, options: Options, target: str) -> Effect:
        width = int(options.get("bits") or bits)
        size = int(options.get("block_size") or block)
        zero_points = method == "zero points" or options.get("is_symmetric") is False
        scale = 4.0 if model.rest >= 4 else 2.0
        each = in_blocks(width, size, scale, zero_points)
        beside = model.size * model.share > BESIDE_THE_GRAPH
        held = _WEIGHT_ROUNDED * model.largest if beside else 3.0 * model.size * model.share
        left = replace(
            model,
            linear=each if model.linear >= _HALF else model.linear,
            head=each if model.head >= _HALF else model.head,
            embedding=each if gathers and model.embedding >= _HALF else model.embedding,
            shared=model.shared and model.head < _HALF,
        )
        return Effect(left, held)

    return rule


def _static(model: Stored, options: Options, target: str) -> Effect:
    if options.get("quant_mode") == "dynamic":
        return _integers(("MatMul",))(model, options, target)
    return _integers(("MatMul", "Conv", "Gemm", "Gather"))(model, options, target)


def _inc(model: Stored, options: Options, target: str) -> Effect:
    if options.get("approach") == "weight_only":
        scheme = options.get("weight_only_config") or {}
        named = {**options, "bits": scheme.get("bits"), "block_size": scheme.get("group_size")}
        return _blocks(4, 32, "zero points")(model, named, target)
    return _static(model, options, target)


_GRAPH = _kept(2.0)

CODES_IN_TORCH = ("Awq", "Gptq", "Rtn")  # their results are checked in PyTorch, those of large models from the codes
SOURCE_STEPS = ("ImportCtranslate2", "ImportDinov2", "ImportGguf")  # their result is the source: it is compared with nothing

RULES: Mapping[str, Rule] = {
    "AddOliveMetadata": _GRAPH,
    "Awq": _awq,
    "CaptureSplitInfo": _kept(1.0),
    "ComposeOnnxModels": _GRAPH,
    "DoRA": _finetune,
    "DynamicToFixedShape": _GRAPH,
    "ExtractAdapters": _GRAPH,
    "Gptq": _gptq,
    "GraphSurgeries": _GRAPH,
    "ImportCtranslate2": _in_torch,
    "ImportDinov2": _in_torch,
    "ImportGguf": _in_torch,
    "IncDynamicQuantization": _integers(("MatMul",)),
    "IncQuantization": _inc,
    "IncStaticQuantization": _static,
    "LoHa": _finetune,
    "LoKr": _finetune,
    "LoRA": _finetune,
    "MatMulNBitsToQDQ": _GRAPH,
    "MergeAdapterWeights": _in_torch,
    "MixedPrecisionOverrides": _GRAPH,
    "ModelBuilder": _model_builder,
    "OnnxBlockWiseRtnQuantization": _blocks(4, 128, "symmetric", gathers=True),
    "OnnxConversion": _export,
    "OnnxDynamicQuantization": _integers(("MatMul",)),
    "OnnxFloatToFloat16": _halved,
    "OnnxHqqQuantization": _blocks(4, 128, "zero points"),
    "OnnxIODataTypeConverter": _GRAPH,
    "OnnxKQuantQuantization": _blocks(4, 32, "zero points"),
    "OnnxOpVersionConversion": _GRAPH,
    "OnnxPeepholeOptimizer": _GRAPH,
    "OnnxQuantization": _static,
    "OnnxQuantizationPreprocess": _GRAPH,
    "OnnxStaticQuantization": _static,
    "OrtMixedPrecision": _halved,
    "OrtSessionParamsTuning": _GRAPH,
    "OrtTransformersOptimization": _fused,
    "QLoRA": _finetune_rounded,
    "QuaRot": _rotated,
    "Rtn": _rtn,
    "SelectiveMixedPrecision": _select,
    "SliceGPT": _sliced,
    "SparseGPT": _pruned,
    "SplitModel": _GRAPH,
}
