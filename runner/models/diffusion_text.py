"""Prompts as token ids, padded and cut to the length that CLIP's text encoders read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable
from runner.models.diffusion import TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PromptIds:
    """A prompt for one text encoder.

    Attributes:
        ids: int64 [1, TOKENS].
        left_out: the end of the prompt that found no room; empty where all of it did.
    """

    ids: NDArray[np.int64]
    left_out: str


def load_tokenizers(folder: Path) -> Sequence[Any]:
    """Returns the tokenizers of a pipeline's folder: one, or two where it has two text encoders.

    Raises:
        ModelUnavailable: there is none, or one cannot be read.
    """
    from transformers import AutoTokenizer

    names = [name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir()]
    if not names:
        raise ModelUnavailable("no-tokenizer", f"{folder} has no folder 'tokenizer'", "make or fetch the model again")
    try:
        return [AutoTokenizer.from_pretrained(folder / name, local_files_only=True) for name in names]
    except (OSError, ValueError, KeyError) as error:
        text = str(error).strip().splitlines()[0]
        raise ModelUnavailable("no-tokenizer", f"no tokenizer can be loaded from {folder}: {text}") from error


def prompt_ids(tokenizer: Any, prompt: str) -> PromptIds:
    """Returns a prompt as ids, with what did not fit; an empty prompt is allowed."""
    import numpy as np

    whole = tokenizer(prompt, verbose=False)["input_ids"]
    encoded = tokenizer(prompt, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"]
    rest = tokenizer.decode(whole[TOKENS - 1 : -1]) if len(whole) > TOKENS else ""
    return PromptIds(np.asarray([encoded], dtype=np.int64), rest)
