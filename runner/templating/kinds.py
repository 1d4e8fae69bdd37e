"""Kinds of models: which pipelines serve one, and with what data and bars a new recipe of it begins.

A pipeline's name is KIND-TARGET-SCHEME, such as `genai-cpu-int4`: kinds are what the names of templates/pipelines begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.models.tasks import TEXT_ONLY
from runner.passes.graph.transformers_optimization import LOOKS_LIKE
from runner.targets.target import Target, target_name

# What onnxruntime-genai's builder makes of a language model, with what this runner adds to it.
GENERATORS = (
    "chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gpt_oss", "granite", "hunyuan_v1_dense", "internlm2", "lfm2",
    "llama", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi", "phi3", "phimoe", "qwen2", "qwen3", "smollm3",
)  # fmt: skip
_BERTS = ("bert", *(name for name, like in LOOKS_LIKE.items() if like == "bert"))
_VITS = ("vit", *(name for name, like in LOOKS_LIKE.items() if like == "vit"))
_IMAGE_TASKS = ("image-classification", "image-feature-extraction")
_CHOOSING = ("fill-mask", "image-classification", "sequence-classification", "text-classification")  # among words or classes
_PERPLEXITY = {
    "fp32": 1.01, "fp16": 1.01, "bf16": 1.03, "int8": 1.02, "int4": 1.15, "int4-bf16": 1.15, "int4-gptq": 1.08,
    "int4@directml": 1.25,
}  # fmt: skip
_WORD_ERRORS = {"fp32": 0.1, "fp16": 0.1, "int8": 0.1, "int4": 0.1}
_AGREEMENT = {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}
_COSINE = {"fp32": 0.999, "fp16": 0.999, "int8": 0.98}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: what its pipelines' names begin with.
        about: what such a model does, in a sentence.
        keywords: what it is found by.
        tasks: Hugging Face tasks.
        architectures: transformers' model types; none for all.
        samples: set of sample data that judges it.
        evaluation: the entry of `evaluation` that names it, and its path.
        also: kinds whose pipelines serve it as well.
        prompt: what `recipe try` asks.
        windows: windows of text for perplexity.
    """

    name: str
    about: str
    keywords: tuple[str, ...]
    tasks: tuple[str, ...]
    architectures: tuple[str, ...]
    samples: str
    evaluation: tuple[str, str]
    also: tuple[str, ...] = ()
    prompt: str | None = None
    windows: int | None = None

    def gate(self, task: str, scheme: str, target: Target) -> tuple[str, str] | None:
        """Returns (metric, bar) that a new variant begins with; None where no bar is known for its scheme."""
        named = (f"{scheme}@{target.name}", scheme, precision_of(scheme))
        metric, bars, direction, unit = _figures(self.name, task)
        bar = next((bars[name] for name in named if name in bars), None)
        return None if bar is None else (metric, f"{direction} {bar:g}{unit}")


def _figures(kind: str, task: str) -> tuple[str, Mapping[str, float], str, str]:
    if kind == "genai":
        return "perplexity", _PERPLEXITY, "<=", "x"
    if kind == "whisper":
        return "wer", _WORD_ERRORS, "<=", ""
    return ("agreement", _AGREEMENT, ">=", "") if task in _CHOOSING else ("cosine", _COSINE, ">=", "")


_SENTENCES = ("sentences", "sample_data/sentences.txt")
_IMAGES = ("images", "sample_data/images")

KINDS: tuple[Kind, ...] = (
    Kind(
        "genai", "A language model that generates text.", ("llm",), ("text-generation",), GENERATORS,
        "prose", ("text", "sample_data/held_out.txt"),
        prompt="What is the capital of France, and what is it known for?", windows=12,
    ),
    Kind(
        "encoder", "A text encoder.", ("encoder",), tuple(task for task in TEXT_ONLY if task != "text-generation"), _BERTS,
        "sentences", _SENTENCES, prompt="How do I remove a red wine stain from a wool carpet?",
    ),
    Kind(
        "vit", "A vision transformer.", ("vision", "transformer"), _IMAGE_TASKS, _VITS, "pictures", _IMAGES, also=("encoder",),
    ),
    Kind("vision", "A convolutional network for pictures.", ("vision", "convolution"), _IMAGE_TASKS, (), "pictures", _IMAGES),
    Kind(
        "whisper", "Transcribes speech.", ("speech", "transcription"), ("automatic-speech-recognition",), ("whisper",),
        "speech", ("speech", "sample_data/speech"),
    ),
    Kind(
        "clip", "Scores how well texts describe a picture.", ("vision", "image-text"),
        ("zero-shot-image-classification",), ("clip",), "pictures", _IMAGES,
    ),
)  # fmt: skip


def kind_of(task: str, architecture: str) -> Kind | None:
    """Returns the kind of a model by its task and transformers' model type; None where no pipeline serves it."""
    return next(
        (kind for kind in KINDS if task in kind.tasks and (not kind.architectures or architecture in kind.architectures)), None
    )


def kind_named(pipeline: str) -> Kind | None:
    """Returns the kind that a pipeline's name begins with; None where it is none of these."""
    return next((kind for kind in KINDS if pipeline.startswith(f"{kind.name}-")), None)


def precision_of(scheme: str) -> str:
    """Returns the precision that a scheme begins with: `int8` of `int8-static`."""
    return scheme.partition("-")[0]


def schemes(kind: Kind, target: Target, pipelines: Sequence[str]) -> dict[str, str]:
    """Returns scheme to pipeline, of those that serve the kind on a target; the kind's own come before those it shares."""
    found: dict[str, str] = {}
    for name in (kind.name, *kind.also):
        prefix = f"{name}-{target_name(target.provider)}-"
        for pipeline in pipelines:
            if pipeline.startswith(prefix):
                found.setdefault(pipeline.removeprefix(prefix), pipeline)
    return found


def scheme_for(asked: str, kind: Kind, architecture: str, target: Target, pipelines: Sequence[str]) -> str | None:
    """Returns the scheme that serves a precision, or is called so; None where there is none.

    A plain one comes before refined ones, and of these the first that needs no data. Gemma overflows in fp16: on CUDA its
    4-bit form computes in bf16.
    """
    served = schemes(kind, target, pipelines)
    if asked == "int4" and architecture.startswith("gemma") and "int4-bf16" in served:
        return "int4-bf16"
    if asked in served:
        return asked
    refined = [scheme for scheme in served if precision_of(scheme) == asked]
    return min(refined, key=lambda scheme: ("static" in scheme or "gptq" in scheme, scheme), default=None)
