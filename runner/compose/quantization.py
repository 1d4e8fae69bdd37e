"""Which passes quantise a model: by its form, the algorithm and the precision, with the settings of the catalogue's recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.catalog.scaffold import Decision
from runner.compose.calibration import Calibration, calibration, reads_of
from runner.compose.known import Known
from runner.compose.quantization_schemes import SCHEMES, Form, QuantizeWish, Scheme, Settings
from runner.compose.single_step import Chain, merged_first
from runner.compose.subject import Subject
from runner.errors import UsageError, did_you_mean
from runner.targets.target import Target
from runner.templating.clone import Clone

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
    _spelt(wish.act_precision, ACTIVATIONS, "precision")
    scheme = _scheme(form, algorithm, precision, wish, target)
    precision = precision or scheme.precisions[0]
    settings = Settings(known, wish, precision, target)
    data = _data(known.subject, scheme, wish, clone)
    steps = merged_first(known, scheme.steps(settings))
    if wish.keep_checkpoint:
        steps = {name: step for name, step in steps.items() if step["type"] != "ModelBuilder"}
    elif wish.qdq and scheme.algorithm not in ("static", "dynamic"):
        steps["qdq"] = {"type": "MatMulNBitsToQDQ"}
    decisions = [
        Decision("model", known.subject.word or str(known.subject.details.get("model_script")), _FORM_IN_WORDS[form]),
        Decision(
            "algorithm", scheme.algorithm, "asked for" if algorithm else _WHY.get(scheme.algorithm, "the only one that serves")
        ),
        Decision("precision", precision, "asked for" if wish.precision else "what the algorithm is for"),
        Decision("passes", " > ".join(step["type"] for step in steps.values()), _BY[scheme.implementation]),
        Decision("target", target.name, target.provider),
        *([data.decision] if data else []),
    ]
    return Chain(
        f"{precision}-{scheme.algorithm}", precision, steps, [data.config] if data else [], decisions,
        _notes(settings, scheme, wish), data.files if data else {},
    )  # fmt: skip


_WHY = {
    "kquant": "needs no data and loses less than plain rounding",
    "gptq": "loses least",
    "dynamic": "needs no data",
    "rtn": "needs no data, and loses next to nothing at 8 bits",
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
    wanted = " ".join(
        part
        for part in (f"to {precision}" if precision else "", f"by {algorithm}" if algorithm else "", f"in {by}" if by else "")
        if part
    )
    raise UsageError(
        "no-scheme", f"nothing quantises {_FORM_IN_WORDS[form]} {wanted} on {target.name}", _legal(there, algorithm, precision)
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


def _notes(settings: Settings, scheme: Scheme, wish: QuantizeWish) -> list[str]:
    notes = []
    if scheme.algorithm == "dynamic" and settings.kind == "vision":
        notes.append("convolutions stay in floating point; --algorithm static quantises them")
    if scheme.algorithm == "rtn" and settings.bits == 4:
        notes.append("plain rounding to 4 bits costs a language model a quarter of its perplexity; gptq loses least")
    if wish.keep_checkpoint:
        notes.append("a transformers checkpoint: 'recipe export --use_model_builder --precision int4' makes ONNX of it")
    if wish.act_precision and scheme.algorithm != "static":
        notes.append(f"--act_precision does nothing here: {scheme.algorithm} has no ranges of activations to store")
    if wish.block_size and scheme.algorithm in ("dynamic", "static"):
        notes.append(f"--block_size does nothing here: {scheme.algorithm} has a scale for each channel")
    return notes
