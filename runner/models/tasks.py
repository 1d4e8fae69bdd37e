"""Hugging Face tasks: which of transformers' classes serves each, what goes in, and what comes out. Imports no ML library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.handle import ModelHandle

Part = Literal["text", "image", "audio", "decoder", "prompt"]
WITH_PAST = "-with-past"  # optimum's spelling of a task whose graph takes and gives the key-value cache


@dataclass(frozen=True)
class Task:
    """What a task means for a model.

    Attributes:
        auto_class: transformers' auto class; None where it has none.
        reads: parts of the input: ``text`` ids with a mask, ``image`` pixels, ``audio`` features or samples, ``decoder`` ids
            that an encoder-decoder goes on from.
        outputs: names of the outputs that a graph of it has.
    """

    auto_class: str | None
    reads: tuple[Part, ...]
    outputs: tuple[str, ...]


_ENCODED = ("last_hidden_state",)
_LOGITS = ("logits",)
_TO_TEXT = Task("AutoModelForSeq2SeqLM", ("text", "decoder"), _LOGITS)

TASKS: Mapping[str, Task] = {
    "audio-classification": Task("AutoModelForAudioClassification", ("audio",), _LOGITS),
    "automatic-speech-recognition": Task("AutoModelForSpeechSeq2Seq", ("audio", "decoder"), _LOGITS),
    "depth-estimation": Task("AutoModelForDepthEstimation", ("image",), ("predicted_depth",)),
    "feature-extraction": Task("AutoModel", ("text",), _ENCODED),
    "fill-mask": Task("AutoModelForMaskedLM", ("text",), _LOGITS),
    "image-classification": Task("AutoModelForImageClassification", ("image",), _LOGITS),
    "image-feature-extraction": Task("AutoModel", ("image",), _ENCODED),
    "image-segmentation": Task("AutoModelForSemanticSegmentation", ("image",), _LOGITS),
    "image-text-to-text": Task("AutoModelForImageTextToText", ("text", "image"), _LOGITS),
    "object-detection": Task("AutoModelForObjectDetection", ("image",), ("logits", "pred_boxes")),
    "question-answering": Task("AutoModelForQuestionAnswering", ("text",), ("start_logits", "end_logits")),
    "semantic-segmentation": Task("AutoModelForSemanticSegmentation", ("image",), _LOGITS),
    "sentence-similarity": Task("AutoModel", ("text",), _ENCODED),
    "sequence-classification": Task("AutoModelForSequenceClassification", ("text",), _LOGITS),
    "summarization": _TO_TEXT,
    "text-classification": Task("AutoModelForSequenceClassification", ("text",), _LOGITS),
    "text-generation": Task("AutoModelForCausalLM", ("text",), _LOGITS),
    "text-to-image": Task(None, ("prompt",), ("image",)),
    "text2text-generation": _TO_TEXT,
    "token-classification": Task("AutoModelForTokenClassification", ("text",), _LOGITS),
    "translation": _TO_TEXT,
    "zero-shot-classification": Task("AutoModelForSequenceClassification", ("text",), _LOGITS),
    "zero-shot-image-classification": Task(
        "AutoModelForZeroShotImageClassification",
        ("text", "image"),
        ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"),
    ),
}

# End of an architecture's name -> the task that it was made for. A base model has no head, and its task is none of these.
_HEADS = {
    "ForCausalLM": "text-generation" + WITH_PAST,
    "LMHeadModel": "text-generation" + WITH_PAST,
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForAudioClassification": "audio-classification",
    "CLIPModel": "zero-shot-image-classification",
    "SiglipModel": "zero-shot-image-classification",
    "T5ForConditionalGeneration": "text2text-generation",
    "BartForConditionalGeneration": "text2text-generation",
    "PegasusForConditionalGeneration": "text2text-generation",
    "M2M100ForConditionalGeneration": "text2text-generation",
    "MarianMTModel": "text2text-generation",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
}
IMAGE_ONLY = tuple(name for name, task in TASKS.items() if task.reads == ("image",))
TEXT_ONLY = tuple(name for name, task in TASKS.items() if task.reads == ("text",))


def task_named(name: str) -> Task:
    """Returns what a task means; optimum's suffix for graphs with a cache makes no difference.

    Raises:
        InvalidRecipe: there is none of that name; says the nearest.
    """
    plain = name.removesuffix(WITH_PAST)
    if plain not in TASKS:
        raise InvalidRecipe(
            Problem("unknown-task", f"models for the task '{name}' are not served", remedy=did_you_mean(plain, TASKS))
        )
    return TASKS[plain]


def task_of(model: ModelHandle) -> str:
    """Returns the model's task: the one that was named, or what the head of its architecture is for."""
    if model.task:
        return model.task
    return task_of_architecture(str(model.attributes.get("architecture") or "")) or "feature-extraction"


def task_of_architecture(name: str) -> str | None:
    """Returns the task that the head of an architecture is for; None for a base model and for a head that is not known."""
    return next((task for head, task in _HEADS.items() if name.endswith(head)), None)
