"""Which passes quantise a model: by its form, the algorithm and the precision, with the settings of the catalogue's recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runner.catalog.scaffold import Decision
from runner.compose.calibration import NAME, Calibration, DataWish, calibration, reads_of
from runner.compose.single_step import Chain, Known, Steps
from runner.compose.subject import Subject
from runner.errors import UsageError, did_you_mean
from runner.models.weight_count import count_weights
from runner.targets.target import Target
from runner.templating.clone import Clone

# A language model or a speech model that onnxruntime-genai's builder knows; a module that is exported; a pipeline that draws;
# a graph that is there.
Form = Literal["generator", "speech", "module", "pipeline", "graph"]
_FORM_IN_WORDS: Mapping[Form, str] = {
    "generator": "a language model", "speech": "a speech model", "module": "such a model", "pipeline": "a pipeline that draws",
    "graph": "an ONNX graph",
}  # fmt: skip
ALGORITHMS = ("rtn", "kquant", "hqq", "gptq", "awq", "quarot", "dynamic", "static")
PRECISIONS = ("int4", "int8", "uint8")
ACTIVATIONS = ("int8", "uint8", "int16", "uint16")
_SPELLINGS = {"k_quant": "kquant", "k-quant": "kquant", "autogptq": "gptq", "autoawq": "awq", "4": "int4", "8": "int8"}
_NOT_QUANTIZED = ("fp16", "fp32", "bf16", "float16", "float32", "bfloat16")
# Olive's names for who does it -> ours.
IMPLEMENTATIONS = {
    "checkpoint": "checkpoint", "autogptq": "checkpoint", "awq": "checkpoint", "quarot": "checkpoint",
    "builder": "builder", "graph": "graph", "ort": "graph", "olive": None, "inc": "inc",
}  # fmt: skip


@dataclass(frozen=True)
class QuantizeWish:
    """How a model is to be quantised; what is None is decided.

    Attributes:
        algorithm: one of `ALGORITHMS`.
        precision: one of `PRECISIONS`, of the weights.
        implementation: one of `IMPLEMENTATIONS`.
        act_precision: one of `ACTIVATIONS`, of the activations of static quantisation.
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
    data: DataWish = DataWish()


@dataclass(frozen=True)
class _Settings:
    known: Known
    wish: QuantizeWish
    precision: str
    target: Target

    @property
    def bits(self) -> int:
        return 4 if self.precision == "int4" else 8

    @property
    def block(self) -> int:
        return self.wish.block_size or 32

    @property
    def symmetric(self) -> bool:
        """Kernels of CUDA and DirectML like blocks without zero points; on a CPU those lose more and are no faster."""
        return self.wish.symmetric if self.wish.symmetric is not None else self.target.name != "cpu"

    @property
    def kind(self) -> str:
        return self.known.kind.name if self.known.kind else ""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding; also where nothing says it."""
        counted = count_weights(self.known.subject.word, self.known.subject.task or "")
        return counted is None or counted.tied


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
    steps: Callable[[_Settings], Steps]
    calibrates: bool = False
    targets: tuple[str, ...] = ("cpu", "cuda", "directml")


def form_of(known: Known) -> Form:
    """Returns the form of a model."""
    subject = known.subject
    if subject.kind == "onnx":
        return "graph"
    if subject.kind == "diffusers":
        return "pipeline"
    name = known.kind.name if known.kind else ""
    return "generator" if name == "genai" else "speech" if name == "whisper" else "module"


def quantization(known: Known, wish: QuantizeWish, target: Target, clone: Clone) -> Chain:
    """Returns the passes for a model, and why it is these.

    Raises:
        UsageError: there is no such algorithm or precision, or nothing makes the one of the other from such a model.
    """
    form = form_of(known)
    algorithm, precision = _spelt(wish.algorithm, ALGORITHMS, "algorithm"), _precision(wish.precision)
    scheme = _scheme(form, algorithm, precision, wish, target)
    precision = precision or scheme.precisions[0]
    settings = _Settings(known, wish, precision, target)
    data = _data(known.subject, scheme, wish, clone)
    steps = scheme.steps(settings)
    if wish.keep_checkpoint:
        steps = {name: step for name, step in steps.items() if step["type"] != "ModelBuilder"}
    elif wish.qdq and scheme.algorithm not in ("static", "dynamic"):
        steps["qdq"] = {"type": "MatMulNBitsToQDQ"}
    decisions = [
        Decision("model", known.subject.word or str(known.subject.details.get("model_script")), _FORM_IN_WORDS[form]),
        Decision("algorithm", scheme.algorithm, "asked for" if algorithm else _WHY_DEFAULT[scheme.algorithm]),
        Decision("precision", precision, "asked for" if wish.precision else "what the algorithm is for"),
        Decision("passes", " > ".join(step["type"] for step in steps.values()), _BY[scheme.implementation]),
        Decision("target", target.name, target.provider),
        *([data.decision] if data else []),
    ]
    return Chain(
        f"{precision}-{scheme.algorithm}", precision, steps, [data.config] if data else [], decisions,
        _notes(settings, scheme, wish), data.files if data else {},
    )  # fmt: skip


_WHY_DEFAULT = {
    "kquant": "needs no data and loses less than plain rounding",
    "dynamic": "needs no data",
    "rtn": "loses nothing at 8 bits",
}
_BY = {
    "checkpoint": "the weights are quantised before the graph is built",
    "builder": "onnxruntime-genai's builder quantises as it builds",
    "graph": "the finished graph is quantised",
    "inc": "as neural-compressor's recipes say",
}


def _spelt(given: str | None, known: Sequence[str], what: str) -> str | None:
    if given is None:
        return None
    found = _SPELLINGS.get(given.lower(), given.lower())
    if found not in known:
        near = did_you_mean(given, known)
        listed = f"there are: {', '.join(known)}"
        raise UsageError(
            f"unknown-{what}", f"there is no {what} '{given}'", near if near.startswith("known") else f"{near} {listed}"
        )
    return found


def _precision(given: str | None) -> str | None:
    if given and given.lower() in _NOT_QUANTIZED:
        raise UsageError(
            "not-quantized", f"{given} is no quantisation", f"'recipe export --precision {given}' makes such a model"
        )
    return _spelt(given, PRECISIONS, "precision")


def _scheme(form: Form, algorithm: str | None, precision: str | None, wish: QuantizeWish, target: Target) -> Scheme:
    by = wish.implementation.lower() if wish.implementation else None
    if by is not None and by not in IMPLEMENTATIONS:
        raise UsageError("unknown-implementation", f"there is no implementation '{by}'", did_you_mean(by, IMPLEMENTATIONS))
    asked = IMPLEMENTATIONS[by] if by else "checkpoint" if wish.keep_checkpoint else None
    if by == "quarot" and algorithm is None:
        algorithm = "quarot"
    there = [one for one in SCHEMES if one.form == form and target.name in one.targets]
    fitting = [
        one
        for one in there
        if algorithm in (None, one.algorithm) and (precision is None or precision in one.precisions)
        and asked in (None, one.implementation) and (asked == "inc" or one.implementation != "inc")
    ]  # fmt: skip
    if fitting:
        return fitting[0]
    wanted = " ".join(part for part in (precision, f"by {algorithm}" if algorithm else "", f"in {by}" if by else "") if part)
    raise UsageError(
        "no-scheme", f"nothing makes {_FORM_IN_WORDS[form]} {wanted} on {target.name}", _legal(there, algorithm, precision)
    )


def _legal(there: Sequence[Scheme], algorithm: str | None, precision: str | None) -> str:
    """What is nearest: the precisions of the algorithm, and the algorithms of the precision; else all there is."""
    of_algorithm = sorted({one for scheme in there if scheme.algorithm == algorithm for one in scheme.precisions})
    of_precision = list(dict.fromkeys(scheme.algorithm for scheme in there if precision in scheme.precisions))
    told = []
    if algorithm and of_algorithm:
        told.append(f"{algorithm} makes {', '.join(of_algorithm)}")
    if precision and of_precision:
        told.append(f"{precision} is made by {', '.join(of_precision)}")
    if not told:
        algorithms = dict.fromkeys(scheme.algorithm for scheme in there)
        told = ["there are " + (", ".join(algorithms) or "none")]
    return "; ".join(told)


def _data(subject: Subject, scheme: Scheme, wish: QuantizeWish, clone: Clone) -> Calibration | None:
    if scheme.calibrates:
        return calibration(reads_of(subject.task, subject.folder if subject.kind == "onnx" else None), wish.data, clone)
    if wish.data.names_data:
        raise UsageError("data-unused", f"{scheme.algorithm} uses no data", "leave the data out, or choose gptq, awq or static")
    return None


def _notes(settings: _Settings, scheme: Scheme, wish: QuantizeWish) -> list[str]:
    notes = []
    if scheme.algorithm == "dynamic" and settings.kind == "vision":
        notes.append("convolutions stay in floating point; --algorithm static quantises them")
    if scheme.algorithm == "rtn" and settings.bits == 4:
        notes.append("plain rounding to 4 bits costs a language model a quarter of its perplexity; gptq loses least")
    if wish.keep_checkpoint:
        notes.append(
            "the result is a transformers checkpoint: 'recipe export --use_model_builder --precision int4' makes ONNX of it"
        )
    if wish.act_precision and scheme.algorithm != "static":
        notes.append(f"--act_precision does nothing here: {scheme.algorithm} has no ranges of activations to store")
    if wish.block_size and scheme.algorithm in ("dynamic", "static"):
        notes.append(f"--block_size does nothing here: {scheme.algorithm} has a scale for each channel")
    return notes


# --- passes ------------------------------------------------------------------------------------------------------------

_PRUNED: Mapping[str, Any] = {"prune_lm_head": True}  # logits of the last token only
_TRACED: Mapping[str, Any] = {"use_dynamo_exporter": False, "target_opset": 17}


def _build(settings: _Settings, precision: str, **options: Any) -> dict[str, Any]:
    level = {"int4_accuracy_level": 4} if settings.target.name == "cpu" and precision in ("int4", "int8") else {}
    return {"type": "ModelBuilder", "precision": precision, **level, **options, "extra_options": dict(_PRUNED)}


def _plain_build(settings: _Settings) -> dict[str, Any]:
    return _build(settings, "fp32" if settings.target.name == "cpu" else "fp16")


def _embedding(settings: _Settings) -> Steps:
    return {"embedding": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32}} if not settings.tied else {}


def _head(settings: _Settings) -> Steps:
    """The head and the embedding in 8 bits."""
    return {"head": {"type": "Rtn", "bits": 8, "group_size": 32, "sym": settings.symmetric, "lm_head": True, "embeds": True}}


def _weights(settings: _Settings, type_: str, **options: Any) -> Steps:
    """A pass over the checkpoint's linear layers, the head and embedding in 8 bits, and the graph."""
    scheme = {"bits": settings.bits, "group_size": settings.block, "sym": settings.symmetric}
    if settings.target.name == "directml":  # it has no kernel for a quantised embedding
        return {"quantize": {"type": type_, **scheme, "lm_head": True, **options}, "build": _build(settings, "int4")}
    return {"quantize": {"type": type_, **scheme, **options}, **_head(settings), "build": _build(settings, "int4")}


def _gptq(settings: _Settings) -> Steps:
    return _weights(settings, "Gptq", data_config=NAME)


def _awq(settings: _Settings) -> Steps:
    return _weights(settings, "Awq", data_config=NAME)


def _quarot(settings: _Settings) -> Steps:
    return {"rotate": {"type": "QuaRot"}, **_gptq(settings)}


def _rtn_checkpoint(settings: _Settings) -> Steps:
    return _weights(settings, "Rtn")


def _builder(settings: _Settings) -> Steps:
    algorithm = {"int4_algo_config": "k_quant_mixed"} if settings.bits == 4 else {}
    return {
        "build": _build(settings, settings.precision, int4_block_size=settings.block, **algorithm),
        **_embedding(settings),
    }


def _rtn_builder(settings: _Settings) -> Steps:
    options = {"int4_is_symmetric": True} if settings.target.name == "directml" else {}
    return {"build": _build(settings, settings.precision, int4_block_size=settings.block, **options), **_embedding(settings)}


def _decoder_graph(quantize: Callable[[_Settings], Steps]) -> Callable[[_Settings], Steps]:
    """A language model's graph, quantised when it is finished; what is left of its embedding in 8 bits."""

    def steps(settings: _Settings) -> Steps:
        rest: Steps = {"embedding": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32}}
        return {"build": _plain_build(settings), **quantize(settings), **(rest if settings.target.name == "cpu" else {})}

    return steps


def _speech(quantize: Callable[[_Settings], Steps]) -> Callable[[_Settings], Steps]:
    """The encoder, which computes, gets 8-bit products on a CPU; the decoder, which waits for memory, the algorithm."""

    def steps(settings: _Settings) -> Steps:
        build: Steps = {"build": {"type": "ModelBuilder", "precision": "fp32" if settings.target.name == "cpu" else "fp16"}}
        if settings.target.name != "cpu":
            return {**build, **quantize(settings)}
        encoder = {**_DYNAMIC, "nodes_to_exclude": ["decoder.onnx:*", "encoder.onnx:*/mlp/fc2/*"]}
        decoder = {"decoder": {**quantize(settings)["quantize"], "nodes_to_exclude": ["encoder.onnx:*"]}}
        rest = {"embedding": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32}}
        return {**build, "encoder": encoder, **decoder, **rest}

    return steps


def _kquant(settings: _Settings) -> Steps:
    return {"quantize": {"type": "OnnxKQuantQuantization", "bits": settings.bits, "block_size": settings.block}}


def _hqq(settings: _Settings) -> Steps:
    return {"quantize": {"type": "OnnxHqqQuantization", "block_size": settings.block}}


def _rtn(settings: _Settings) -> Steps:
    scheme = {"bits": settings.bits, "block_size": settings.block, "is_symmetric": settings.symmetric}
    return {"quantize": {"type": "OnnxBlockWiseRtnQuantization", **scheme}}


# 7 bits are exact on processors without VNNI as well.
_DYNAMIC: Mapping[str, Any] = {
    "type": "OnnxDynamicQuantization", "op_types_to_quantize": ["MatMul"], "per_channel": True, "reduce_range": True,
}  # fmt: skip


def _dynamic(settings: _Settings) -> Steps:
    types = ["MatMul", "Attention"] if settings.kind == "clip" else ["MatMul", "Gemm"]
    weights = {"precision": "uint8"} if settings.precision == "uint8" else {}
    constant = {"extra_options": {"MatMulConstBOnly": True}}
    return {"quantize": {**_DYNAMIC, "op_types_to_quantize": types, **weights, **constant}}


def _dynamic_decoder(settings: _Settings) -> Steps:
    return {"build": _plain_build(settings), **_dynamic(settings)}


def _dynamic_speech(settings: _Settings) -> Steps:
    return {"build": {"type": "ModelBuilder", "precision": "fp32"}, "quantize": dict(_DYNAMIC)}


def _dynamic_pipeline(settings: _Settings) -> Steps:
    return {
        "convert": {"type": "OnnxConversion", "target_opset": 17},
        "quantize": {**_DYNAMIC, "components": ["text_encoder*", "unet"]},
    }


def _static(settings: _Settings) -> Steps:
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


def _inc(settings: _Settings) -> Steps:
    return {"quantize": {"type": "IncDynamicQuantization"}}


def _exported(quantize: Callable[[_Settings], Steps], *, weights_only: bool = False) -> Callable[[_Settings], Steps]:
    """A module's graph, exported as the quantiser likes it: products that it knows, or attention in one kernel."""

    def steps(settings: _Settings) -> Steps:
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
    Scheme("generator", "kquant", _BOTH, "builder", _builder, targets=("cpu", "cuda")),
    Scheme("generator", "gptq", _BOTH, "checkpoint", _gptq, calibrates=True),
    Scheme("generator", "awq", _BOTH, "checkpoint", _awq, calibrates=True),
    Scheme("generator", "quarot", _BOTH, "checkpoint", _quarot, calibrates=True),
    Scheme("generator", "rtn", ("int4",), "checkpoint", _rtn_checkpoint),
    Scheme("generator", "rtn", ("int8", "int4"), "builder", _rtn_builder),
    Scheme("generator", "rtn", ("int8",), "checkpoint", _rtn_checkpoint),
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
