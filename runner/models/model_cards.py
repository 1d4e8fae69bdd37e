"""What model cards say of licence and gating, by the pattern of a model's id; for where the hub cannot be asked.

It was written down from the cards and is compared with them by nobody but the person who uses it: a recipe that takes a fact
from here says that it is unchecked.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        licence: SPDX id, or the licence's own name.
        gated: the hub asks to accept it before it gives the weights.
    """

    licence: str
    gated: bool = False


_APACHE, _MIT = Card("Apache-2.0"), Card("MIT")

# The first pattern that fits an id counts; letter case makes no difference.
_CARDS: tuple[tuple[str, Card], ...] = (
    ("albert/albert-*", _APACHE),
    ("allenai/OLMo-*", _APACHE),
    ("amd/AMD-OLMo-*", _APACHE),
    ("BAAI/bge-*", _MIT),
    ("baidu/ERNIE-4.5-*", _APACHE),
    ("codellama/*", Card("Llama-2")),
    ("deepseek-ai/DeepSeek-R1-Distill-*", _MIT),
    ("distilbert/distil*", _APACHE),
    ("distil-whisper/*", _MIT),
    ("facebook/convnext-*", _APACHE),
    ("facebook/deit-*", _APACHE),
    ("facebook/dinov2-*", _APACHE),
    ("facebook/hubert-base*", _APACHE),
    ("facebook/wav2vec2-base*", _APACHE),
    ("FacebookAI/*roberta-*", _MIT),
    ("google-bert/*", _APACHE),
    ("google-t5/*", _APACHE),
    ("google/electra-*", _APACHE),
    ("google/gemma-*", Card("Gemma", gated=True)),
    ("google/vit-*", _APACHE),
    ("HuggingFaceTB/SmolLM*", _APACHE),
    ("ibm-granite/granite-*", _APACHE),
    ("intfloat/*e5-*", _MIT),
    ("meta-llama/Llama-2-*", Card("Llama-2", gated=True)),
    ("meta-llama/Meta-Llama-3-*", Card("Llama-3", gated=True)),
    ("meta-llama/*Llama-3.1-*", Card("Llama-3.1", gated=True)),
    ("meta-llama/Llama-3.2-*", Card("Llama-3.2", gated=True)),
    ("meta-llama/Llama-3.3-*", Card("Llama-3.3", gated=True)),
    ("microsoft/deberta-*", _MIT),
    ("microsoft/phi-*", _MIT),
    ("microsoft/resnet-*", _APACHE),
    ("microsoft/swin-*", _APACHE),
    ("mistralai/Mistral-7B-Instruct-v0.[23]", Card("Apache-2.0", gated=True)),
    ("mistralai/Mistral-7B-*", _APACHE),
    ("mistralai/Mistral-Nemo-*", _APACHE),
    ("openai-community/gpt2*", _MIT),
    ("openai/clip-*", _MIT),
    ("openai/gpt-oss-*", _APACHE),
    ("openai/whisper-large-v3-turbo", _MIT),
    ("openai/whisper-*", _APACHE),
    ("Qwen/Qwen1.5-0.5B*", Card("Tongyi-Qianwen-Research")),
    ("Qwen/Qwen1.5-*", Card("Tongyi-Qianwen")),
    ("Qwen/Qwen2.5*-3B*", Card("Qwen-Research")),
    ("Qwen/Qwen2-*72B*", Card("Tongyi-Qianwen")),
    ("Qwen/Qwen2.5*-72B*", Card("Qwen")),
    ("Qwen/Qwen*", _APACHE),
    ("sentence-transformers/all-*", _APACHE),
    ("TinyLlama/*", _APACHE),
)


def card_of(model_id: str) -> Card | None:
    """Returns what the card of a model is known to say; None where nothing is."""
    name = model_id.lower()
    return next((card for pattern, card in _CARDS if fnmatch.fnmatchcase(name, pattern.lower())), None)
