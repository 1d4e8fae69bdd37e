"""The ways to quantise: for each form of model, algorithm and precision the passes, with the settings of the recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.compose.calibration import NAME, DataWish
from runner.compose.known import Known
from runner.compose.single_step import Steps
from runner.models.checkpoint import read_json
from runner.models.weight_count import count_weights
from runner.targets.target import Target

# A language model or a speech model that onnxruntime-genai's builder knows; a module that is exported; a pipeline that draws;
# a graph that is there.
Form = Literal["generator", "speech", "module", "pipeline", "graph"]


@dataclass(frozen=True)
class QuantizeWish:
    """How a model is to be quantised; what is None is decided.

    Attributes:
        algorithm: rtn, kquant, hqq, gptq, awq, quarot, dynamic or static.
        precision: of the weights: int4, int8 or uint8.
        implementation: who does it, see `Scheme`.
        act_precision: of the activations of static quantisation: uint8, int8, uint16 or int16.
        block_size: weights that share a scale.
        symmetric: without zero points.
        qdq: QuantizeLinear and DequantizeLinear of the ONNX standard in place of fused operators.
        keep_checkpoint: leave the model in transformers' form, for another tool to go on from.
        data: what to calibrate on.
    """

    algorithm: str | None = None
    precision: str | None = None
    implementation: str | None = None
    act_precision: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    qdq: bool = False
    keep_checkpoint: bool = False
    data: DataWish = field(default_factory=DataWish)


@dataclass(frozen=True)
class Settings:
    """What the passes of a scheme depend on: the model, what was asked for, and the target."""

    known: Known
    wish: QuantizeWish
    precision: str
    target: Target

    @property
    def bits(self) -> int:
        """Returns the bits of a weight."""
        return 4 if self.precision == "int4" else 8

    @property
    def block(self) -> int:
        """Returns how many weights share a scale."""
        return self.wish.block_size or 32

    @property
    def symmetric(self) -> bool:
        """Returns whether there are no zero points: for CUDA and DirectML; on a CPU that loses more and is no faster."""
        return self.wish.symmetric if self.wish.symmetric is not None else self.target.name != "cpu"

    @property
    def kind(self) -> str:
        """Returns the name of the model's kind; empty where it has none."""
        return self.known.kind.name if self.known.kind else ""

    @property
    def tied(self) -> bool | None:
        """Returns whether the head is the embedding; None where nothing says it."""
        subject = self.known.subject
        if subject.folder is not None and (subject.folder / "config.json").is_file():
            told = read_json(subject.folder / "config.json")
            tied = {**(told.get("text_config") or {}), **told}.get("tie_word_embeddings")
            if tied is not None:
                return bool(tied)
        counted = count_weights(subject.word, subject.task or "")
        return counted.tied if counted else None


@dataclass(frozen=True)
class Scheme:
    """One way to quantise.

    Attributes:
        form: what it takes.
        algorithm: its algorithm.
        precisions: of the weights, the usual one first.
        implementation: ``checkpoint`` changes the weights of transformers' model, ``builder`` is onnxruntime-genai's,
            ``graph`` works on a finished graph, ``inc`` as neural-compressor's recipes say.
        steps: gives its passes.
        calibrates: it needs data.
        targets: what it makes models for.
    """

    form: Form
    algorithm: str
    precisions: tuple[str, ...]
    implementation: str
    steps: Callable[[Settings], Steps]
    calibrates: bool = False
    targets: tuple[str, ...] = ("cpu", "cuda", "directml")


_PRUNED: Mapping[str, Any] = {"prune_lm_head": True}  # logits of the last token only
_TRACED: Mapping[str, Any] = {"use_dynamo_exporter": False, "target_opset": 17}


def _build(settings: Settings, precision: str, **options: Any) -> dict[str, Any]:
    level = {"int4_accuracy_level": 4} if settings.target.name == "cpu" and precision in ("int4", "int8") else {}
    return {"type": "ModelBuilder", "precision": precision, **level, **options, "extra_options": dict(_PRUNED)}


def _plain_build(settings: Settings) -> dict[str, Any]:
    return _build(settings, "fp32" if settings.target.name == "cpu" else "fp16")


def _embedding(settings: Settings) -> dict[str, Any]:
    """The option that gives an embedding of its own 8 bits, where something reads codes; DirectML has no kernel for it."""
    return {"embedding_bits": 8} if settings.tied is not True and settings.target.name != "directml" else {}


def _head(settings: Settings) -> Steps:
    """The head and the embedding in 8 bits."""
    return {"head": {"type": "Rtn", "bits": 8, "group_size": 32, "sym": settings.symmetric, "lm_head": True, "embeds": True}}


def _weights(settings: Settings, type_: str, **options: Any) -> Steps:
    """A pass over the checkpoint's linear layers, the head and embedding in 8 bits, and the graph."""
    scheme = {"bits": settings.bits, "group_size": settings.block, "sym": settings.symmetric}
    if settings.target.name == "directml":  # it has no kernel for a quantised embedding
        return {"quantize": {"type": type_, **scheme, "lm_head": True, **options}, "build": _build(settings, "int4")}
    return {"quantize": {"type": type_, **scheme, **options}, **_head(settings), "build": _build(settings, "int4")}


def _gptq(settings: Settings) -> Steps:
    return _weights(settings, "Gptq", data_config=NAME)


def _awq(settings: Settings) -> Steps:
    return _weights(settings, "Awq", data_config=NAME)


def _quarot(settings: Settings) -> Steps:
    return {"rotate": {"type": "QuaRot"}, **_gptq(settings)}


def _rtn_checkpoint(settings: Settings) -> Steps:
    return _weights(settings, "Rtn")


def _builder(settings: Settings) -> Steps:
    scheme = {"int4_block_size": settings.block, "int4_algo_config": "k_quant_mixed"}
    return {"build": _build(settings, "int4", **scheme, **_embedding(settings))}


def _rtn_builder(settings: Settings) -> Steps:
    options = {"int4_is_symmetric": True} if settings.target.name == "directml" else {}
    if settings.tied and settings.bits == 8 and settings.target.name != "directml":
        options["int4_tied_embeddings"] = True
    return {"build": _build(settings, settings.precision, int4_block_size=settings.block, **options, **_embedding(settings))}


def _hqq_builder(settings: Settings) -> Steps:
    scheme = {"int4_block_size": settings.block, "int4_algo_config": "hqq", "int4_tied_embeddings": False}
    codes = {"embedding_bits": 8} if settings.target.name == "cpu" else {}
    asked = {"int4_is_symmetric": True} if settings.wish.symmetric else {}  # which ModelBuilder refuses
    return {"build": _build(settings, "int4", **scheme, **codes, **asked)}


def _decoder_graph(quantize: Callable[[Settings], Steps]) -> Callable[[Settings], Steps]:
    """A language model's graph, quantised when it is finished; what is left of its embedding in 8 bits."""

    def steps(settings: Settings) -> Steps:
        rest: Steps = {"embedding": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32}}
        return {"build": _plain_build(settings), **quantize(settings), **(rest if settings.target.name == "cpu" else {})}

    return steps


def _speech(quantize: Callable[[Settings], Steps]) -> Callable[[Settings], Steps]:
    """The encoder, which computes, gets 8-bit products on a CPU; the decoder, which waits for memory, the algorithm."""

    def steps(settings: Settings) -> Steps:
        build: Steps = {"build": {"type": "ModelBuilder", "precision": "fp32" if settings.target.name == "cpu" else "fp16"}}
        if settings.target.name != "cpu":
            return {**build, **quantize(settings)}
        encoder = {**_DYNAMIC, "nodes_to_exclude": ["decoder.onnx:*", "encoder.onnx:*/mlp/fc2/*"]}
        decoder = {"decoder": {**quantize(settings)["quantize"], "nodes_to_exclude": ["encoder.onnx:*"]}}
        rest = {"embedding": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32}}
        return {**build, "encoder": encoder, **decoder, **rest}

    return steps


def _kquant(settings: Settings) -> Steps:
    return {"quantize": {"type": "OnnxKQuantQuantization", "bits": settings.bits, "block_size": settings.block}}


def _hqq(settings: Settings) -> Steps:
    return {"quantize": {"type": "OnnxHqqQuantization", "block_size": settings.block}}


def _rtn(settings: Settings) -> Steps:
    scheme = {"bits": settings.bits, "block_size": settings.block, "is_symmetric": settings.symmetric}
    return {"quantize": {"type": "OnnxBlockWiseRtnQuantization", **scheme}}


# 7 bits are exact on processors without VNNI as well.
_DYNAMIC: Mapping[str, Any] = {
    "type": "OnnxDynamicQuantization", "op_types_to_quantize": ["MatMul"], "per_channel": True, "reduce_range": True,
}  # fmt: skip


def _dynamic(settings: Settings) -> Steps:
    types = ["MatMul", "Attention"] if settings.kind == "clip" else ["MatMul", "Gemm"]
    weights = {"precision": "uint8"} if settings.precision == "uint8" else {}
    constant = {"extra_options": {"MatMulConstBOnly": True}}
    return {"quantize": {**_DYNAMIC, "op_types_to_quantize": types, **weights, **constant}}


def _dynamic_decoder(settings: Settings) -> Steps:
    return {"build": _plain_build(settings), **_dynamic(settings)}


def _dynamic_speech(settings: Settings) -> Steps:
    return {"build": {"type": "ModelBuilder", "precision": "fp32"}, "quantize": dict(_DYNAMIC)}


def _dynamic_pipeline(settings: Settings) -> Steps:
    return {
        "convert": {"type": "OnnxConversion", "target_opset": 17},
        "quantize": {**_DYNAMIC, "components": ["text_encoder*", "unet"]},
    }


def _static(settings: Settings) -> Steps:
    common: dict[str, Any] = {
        "type": "OnnxStaticQuantization",
        "data_config": NAME,
        "activation_type": settings.wish.act_precision or "uint8",
        "precision": settings.precision,
        "quant_format": "QDQ",
        "per_channel": True,
        "reduce_range": True,
    }
    if settings.kind == "vision":
        return {"quantize": {**common, "quant_preprocess": True, "calibrate_method": "Percentile"}}
    if settings.known.subject.kind == "onnx" and settings.known.subject.task is None:
        return {"quantize": {**common, "quant_preprocess": True, "calibrate_method": "MinMax"}}
    products: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "calibrate_method": "MinMax",
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    }
    kept = {"nodes_to_exclude": ["*/attention/self/MatMul*"]} if settings.kind == "encoder" else {}
    return {"quantize": {**common, **products, **kept}}


def _inc(settings: Settings) -> Steps:
    return {"quantize": {"type": "IncDynamicQuantization"}}


def _exported(quantize: Callable[[Settings], Steps], *, weights_only: bool = False) -> Callable[[Settings], Steps]:
    """A module's graph, exported as the quantiser likes it: products that it knows, or attention in one kernel."""

    def steps(settings: Settings) -> Steps:
        if settings.kind == "clip":
            convert: Steps = {
                "convert": {"type": "OnnxConversion", **_TRACED, "split_towers": True},
                "fuse": {"type": "OrtTransformersOptimization", "model_type": "clip", "opt_level": 0},
                "tidy": {"type": "OnnxPeepholeOptimizer", "split_skip_layer_normalization": True},
            }
        elif settings.kind in ("vit", "vision") or weights_only:
            convert = {"convert": {"type": "OnnxConversion"}, "tidy": {"type": "OnnxPeepholeOptimizer"}}
        else:
            convert = {"convert": {"type": "OnnxConversion", **_TRACED}}
        return {**convert, **quantize(settings)}

    return steps


_BOTH = ("int4", "int8")
_EIGHT = ("int8", "uint8")
# Of one form, the first that fits is taken.
SCHEMES: tuple[Scheme, ...] = (
    Scheme("generator", "kquant", ("int4",), "builder", _builder, targets=("cpu", "cuda")),
    Scheme("generator", "rtn", ("int8",), "builder", _rtn_builder, targets=("cpu", "cuda")),
    Scheme("generator", "gptq", _BOTH, "checkpoint", _gptq, calibrates=True),
    Scheme("generator", "awq", _BOTH, "checkpoint", _awq, calibrates=True),
    Scheme("generator", "quarot", _BOTH, "checkpoint", _quarot, calibrates=True),
    Scheme("generator", "rtn", ("int4",), "checkpoint", _rtn_checkpoint),
    Scheme("generator", "rtn", ("int4",), "builder", _rtn_builder),
    Scheme("generator", "rtn", ("int8",), "checkpoint", _rtn_checkpoint),
    Scheme("generator", "hqq", ("int4",), "builder", _hqq_builder, targets=("cpu", "cuda")),
    Scheme("generator", "hqq", ("int4",), "graph", _decoder_graph(_hqq)),
    Scheme("generator", "kquant", _BOTH, "graph", _decoder_graph(_kquant)),
    Scheme("generator", "rtn", _BOTH, "graph", _decoder_graph(_rtn)),
    Scheme("generator", "dynamic", _EIGHT, "graph", _dynamic_decoder, targets=("cpu",)),
    Scheme("speech", "kquant", _BOTH, "graph", _speech(_kquant), targets=("cpu", "cuda")),
    Scheme("speech", "rtn", _BOTH, "graph", _speech(_rtn)),
    Scheme("speech", "hqq", ("int4",), "graph", _speech(_hqq)),
    Scheme("speech", "dynamic", ("int8",), "graph", _dynamic_speech, targets=("cpu",)),
    Scheme("module", "dynamic", _EIGHT, "graph", _exported(_dynamic), targets=("cpu",)),
    Scheme("module", "static", _EIGHT, "graph", _exported(_static), calibrates=True, targets=("cpu",)),
    Scheme("module", "kquant", _BOTH, "graph", _exported(_kquant, weights_only=True)),
    Scheme("module", "rtn", _BOTH, "graph", _exported(_rtn, weights_only=True)),
    Scheme("module", "hqq", ("int4",), "graph", _exported(_hqq, weights_only=True)),
    Scheme("module", "dynamic", ("int8",), "inc", _exported(_inc), targets=("cpu",)),
    Scheme("pipeline", "dynamic", ("int8",), "graph", _dynamic_pipeline, targets=("cpu",)),
    Scheme("graph", "dynamic", _EIGHT, "graph", _dynamic, targets=("cpu",)),
    Scheme("graph", "kquant", _BOTH, "graph", _kquant),
    Scheme("graph", "rtn", _BOTH, "graph", _rtn),
    Scheme("graph", "hqq", ("int4",), "graph", _hqq),
    Scheme("graph", "static", _EIGHT, "graph", _static, calibrates=True, targets=("cpu",)),
    Scheme("graph", "dynamic", ("int8",), "inc", _inc, targets=("cpu",)),
)
