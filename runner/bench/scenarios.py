"""What is measured for which task, and what every figure means."""

from __future__ import annotations

from dataclasses import dataclass

from runner.models.components import is_pipeline
from runner.models.handle import ModelHandle

PROMPT_TOKENS = 128
NEW_TOKENS = 64
TEXT_TOKENS = 128
BATCH = 8
STEPS = 4
PICTURE_BATCHES = (1, 4, BATCH, 16)
TEXT_BATCHES = (1, BATCH)
GRID_NEW_TOKENS = 16  # of text generation by batch and length on a processor
SHORT_TEXT = 16  # tokens: a search query


@dataclass(frozen=True)
class Figure:
    """A figure of a benchmark.

    Attributes:
        name: what gates and files call it.
        title: what people read.
        unit: ``ms``, ``tokens/s``, ``samples/s``, ``s``, ``s/s``, ``dB``, ``bytes``; empty for a pure number. Of
            ``throughput`` the task says what the samples are: see `rate_unit`.
        higher_is_better: direction.
        about: what was done to get it, in a few words.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    about: str


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("decode", "decode", "tokens/s", True, f"{NEW_TOKENS} tokens behind {PROMPT_TOKENS}, greedy, batch 1"),
        Figure("ttft", "first token", "ms", False, f"prompt of {PROMPT_TOKENS} tokens, batch 1"),
        Figure("rtf", "real-time factor", "s/s", False, "seconds a second of sound, all clips, greedy"),
        Figure("image_time", "image time", "s", False, f"{STEPS} steps of the scheduler, the model's own size, batch 1"),
        Figure("step_time", "step time", "s", False, "one call of the UNet with guidance and the scheduler, median"),
        Figure("latency", "latency", "ms", False, "one input"),
        Figure("throughput", "throughput", "samples/s", True, f"batches of {BATCH}"),
        Figure("wer", "word error rate", "", False, "on the recipe's speech"),
        Figure("perplexity", "perplexity", "", False, "on the recipe's text"),
        Figure("accuracy", "accuracy", "", True, "right first choice on labelled pictures"),
        Figure("spearman", "similarity of pairs", "", True, "rank correlation with what people say"),
        Figure("pearson", "similarity, linear", "", True, "correlation with what people say"),
        Figure("cosine", "cosine", "", True, "to the baseline's answers, mean"),
        Figure("cosine_min", "cosine, worst", "", True, "to the baseline's answers, worst input"),
        Figure("agreement", "agreement", "", True, "same first choice as the baseline"),
        Figure("psnr", "picture PSNR", "dB", True, "to the baseline's pictures of the same noise, mean"),
        Figure("size", "size on disk", "bytes", False, "all files of the model's folder"),
        Figure("load", "load", "s", False, "files in the system's cache, imports done"),
        Figure("device_memory", "device memory", "bytes", False, "of the process, behind the timed scenarios"),
        Figure("peak_rss", "peak memory", "bytes", False, "of a process of its own, timed scenarios included"),
    )
}

MASKED_WORDS = ("fill-mask",)
ZERO_SHOT = "zero-shot-image-classification"
CLASSIFIERS = ("text-classification", "sequence-classification", "image-classification")


EMBEDDINGS = ("feature-extraction", "sentence-similarity", "image-feature-extraction")
_RATES = {
    "image-classification": "images/s",
    ZERO_SHOT: "images/s",
    "image-feature-extraction": "images/s",
    "feature-extraction": "embeddings/s",
    "sentence-similarity": "embeddings/s",
    "text-classification": "texts/s",
    "sequence-classification": "texts/s",
    "fill-mask": "texts/s",
}


def rate_unit(task: str | None) -> str:
    """Returns the unit of a throughput of models for a task, such as ``images/s``; ``samples/s`` for any other task."""
    return _RATES.get(task or "", FIGURES["throughput"].unit)


def generates(output: ModelHandle, source: ModelHandle) -> bool:
    """Returns whether both models generate text by themselves, so that decoding can be compared."""
    return output.kind == "genai" and (source.task or output.task or "").startswith("text-generation")


def transcribes(output: ModelHandle, source: ModelHandle) -> bool:
    """Returns whether both models turn sound into text by themselves."""
    return output.kind == "genai" and source.kind == "hf" and source.task == "automatic-speech-recognition"


def draws(output: ModelHandle, source: ModelHandle) -> bool:
    """Returns whether both models are pipelines that draw pictures from text."""
    return is_pipeline(output) and source.kind == "diffusers"


def speaks(model: ModelHandle) -> bool:
    """Returns whether the model is a language model, whose perplexity can be told."""
    return (model.task or "").startswith("text-generation")


def scenarios_of(output: ModelHandle, source: ModelHandle) -> tuple[str, ...]:
    """Returns what is timed of a pair of models, in its order."""
    if generates(output, source):
        return ("generation",)
    if transcribes(output, source):
        return ("transcription",)
    return ("drawing",) if draws(output, source) else ("latency", "throughput")
