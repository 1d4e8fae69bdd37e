"""How the families of language models write text as tokens: style, control tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Style = Literal["byte-bpe", "metaspace-bpe", "wordpiece"]


@dataclass(frozen=True)
class Vocabulary:
    """How a family writes text as tokens.

    Attributes:
        style: ``byte-bpe`` (GPT-2's bytes, as Llama 3, Qwen, SmolLM, Phi-4), ``metaspace-bpe`` (SentencePiece with byte
            fallback, as Llama 2, Gemma, Mistral) or ``wordpiece`` (BERT).
        special: control tokens in the order of their ids.
        roles: `bos_token`, `eos_token`, `pad_token`, `unk_token`, `cls_token`, `sep_token`, `mask_token`.
        stops: tokens that end a generation; the eos token where empty.
        plain: added tokens that are text for the decoder, such as ``<think>``.
        adds_bos: whether every text starts with the bos token.
        adds_eos: whether every text ends with the eos token; of those that start with the bos token.
        segments: whether the model is told which of two texts a token belongs to.
        template: the chat template (jinja), or None for models that do not chat.
    """

    style: Style
    special: tuple[str, ...]
    roles: Mapping[str, str]
    stops: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    adds_bos: bool = False
    adds_eos: bool = False
    segments: bool = False
    template: str | None = None


def _chat(turn: str, opening: str = "", answer: str | None = None, starts_with_bos: bool = False) -> str:
    """Returns a chat template; `turn` and `answer` (the assistant's turn where it differs) are jinja expressions."""
    text = "{{ bos_token }}" if starts_with_bos else ""
    text += "{% for message in messages %}"
    if answer is None:
        text += "{{ " + turn + " }}"
    else:
        text += "{% if message['role'] == 'assistant' %}{{ " + answer + " }}{% else %}{{ " + turn + " }}{% endif %}"
    text += "{% endfor %}"
    return text + ("{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}" if opening else "")


_ROLE, _TEXT = "message['role']", "message['content']"
_CHATML = _chat(f"'<|im_start|>' + {_ROLE} + '\\n' + {_TEXT} + '<|im_end|>\\n'", "<|im_start|>assistant\\n")
_HEADERS = _chat(
    f"'<|start_header_id|>' + {_ROLE} + '<|end_header_id|>\\n\\n' + {_TEXT} + '<|eot_id|>'",
    "<|start_header_id|>assistant<|end_header_id|>\\n\\n",
    starts_with_bos=True,
)
_INST = _chat(f"'[INST] ' + {_TEXT} + ' [/INST]'", answer=f"' ' + {_TEXT} + eos_token", starts_with_bos=True)
_TAGS = _chat(f"'<|' + {_ROLE} + '|>\\n' + {_TEXT} + '<|end|>\\n'", "<|assistant|>\\n")
_ZEPHYR = _chat(f"'<|' + {_ROLE} + '|>\\n' + {_TEXT} + eos_token + '\\n'", "<|assistant|>\\n")
_PHI4 = _chat(f"'<|im_start|>' + {_ROLE} + '<|im_sep|>' + {_TEXT} + '<|im_end|>'", "<|im_start|>assistant<|im_sep|>")
_TURNS = _chat(
    f"'<start_of_turn>user\\n' + {_TEXT} + '<end_of_turn>\\n'",
    "<start_of_turn>model\\n",
    answer=f"'<start_of_turn>model\\n' + {_TEXT} + '<end_of_turn>\\n'",
    starts_with_bos=True,
)
_DEEPSEEK = _chat(
    f"'<｜User｜>' + {_TEXT}",
    "<｜Assistant｜><think>\\n",
    answer=f"'<｜Assistant｜>' + {_TEXT} + eos_token",
    starts_with_bos=True,
)

_HARMONY = _chat(f"'<|start|>' + {_ROLE} + '<|message|>' + {_TEXT} + '<|end|>'", "<|start|>assistant")

_THINK = ("<think>", "</think>")
_SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}

SMOLLM = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"},
    template=_CHATML,
)
QWEN = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    stops=("<|im_end|>", "<|endoftext|>"),
    template=_CHATML,
)
QWEN3 = Vocabulary(
    "byte-bpe", QWEN.special, QWEN.roles, QWEN.stops, plain=("<tool_call>", "</tool_call>", *_THINK), template=_CHATML
)
LLAMA3 = Vocabulary(
    "byte-bpe",
    ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
    stops=("<|end_of_text|>", "<|eot_id|>"),
    adds_bos=True,
    template=_HEADERS,
)
LLAMA2 = Vocabulary("metaspace-bpe", ("<unk>", "<s>", "</s>"), _SENTENCEPIECE, adds_bos=True, template=_INST)
TINYLLAMA = Vocabulary("metaspace-bpe", ("<unk>", "<s>", "</s>"), _SENTENCEPIECE, adds_bos=True, template=_ZEPHYR)
MISTRAL = Vocabulary(
    "metaspace-bpe", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), _SENTENCEPIECE, adds_bos=True, template=_INST
)
PHI3 = Vocabulary(
    "metaspace-bpe",
    ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"},
    stops=("<|end|>", "<|endoftext|>"),
    template=_TAGS,
)
PHI4 = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    stops=("<|im_end|>", "<|endoftext|>"),
    plain=_THINK,
    template=_PHI4,
)
PHI4_MINI = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"),
    {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    stops=("<|end|>", "<|endoftext|>"),
    template=_TAGS,
)
GEMMA = Vocabulary(
    "metaspace-bpe",
    ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    stops=("<eos>", "<end_of_turn>"),
    adds_bos=True,
    template=_TURNS,
)
GPT_OSS = Vocabulary(
    "byte-bpe",
    ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    stops=("<|return|>", "<|endoftext|>", "<|call|>"),
    template=_HARMONY,
)
DEEPSEEK = Vocabulary(
    "byte-bpe",
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜end▁of▁sentence｜>"},
    plain=_THINK,
    adds_bos=True,
    template=_DEEPSEEK,
)
PLAIN_BYTES = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>",),
    {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
)
BERT = Vocabulary(
    "wordpiece",
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    segments=True,
)
DISTILBERT = replace(BERT, segments=False)
ROBERTA = Vocabulary(
    "byte-bpe",
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
)
DEBERTA = replace(
    ROBERTA,
    special=("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    roles={
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
)
ALBERT = BERT
CLIP = Vocabulary(
    "byte-bpe",
    ("<|startoftext|>", "<|endoftext|>"),
    {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    adds_bos=True,
    adds_eos=True,
)
T5 = Vocabulary(
    "metaspace-bpe",
    ("<pad>", "</s>", "<unk>"),
    {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
)
OLMO = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"),
    {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "unk_token": "<|endoftext|>"},
    template=_CHATML,
)
HUNYUAN = Vocabulary(
    "byte-bpe",
    ("<｜hy_begin▁of▁sentence｜>", "<｜hy_place▁holder▁no▁2｜>", "<｜hy_▁pad▁｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>"),
    {"bos_token": "<｜hy_begin▁of▁sentence｜>", "eos_token": "<｜hy_place▁holder▁no▁2｜>", "pad_token": "<｜hy_▁pad▁｜>"},
    template=_chat(
        f"'<｜hy_User｜>' + {_TEXT}",
        "<｜hy_Assistant｜>",
        answer=f"'<｜hy_Assistant｜>' + {_TEXT} + eos_token",
        starts_with_bos=True,
    ),
)
LFM2 = Vocabulary(
    "byte-bpe",
    ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
    adds_bos=True,
    template="{{ bos_token }}" + _CHATML,
)
GEMMA_VISION = replace(GEMMA, special=(*GEMMA.special, "<start_of_image>", "<end_of_image>", "<image_soft_token>"))
QWEN_VISION = replace(QWEN3, special=(*QWEN.special, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"))
MISTRAL_VISION = replace(MISTRAL, special=(*MISTRAL.special, "[IMG]", "[IMG_BREAK]", "[IMG_END]"))
WHISPER = Vocabulary(
    "byte-bpe",
    (
        "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>", "<|transcribe|>",
        "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>",
    ),
    {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
)  # fmt: skip
