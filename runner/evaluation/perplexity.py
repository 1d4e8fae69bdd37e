"""Perplexity of a language model on a text: exp of the mean negative log-likelihood of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable
from runner.evaluation.metric import Metric

if TYPE_CHECKING:
    import numpy as np


def token_windows(text_ids: Sequence[int], prefix: Sequence[int], windows: int, length: int) -> list[list[int]]:
    """Cuts a text into consecutive windows.

    Args:
        text_ids: token ids of the text, without special tokens.
        prefix: special tokens that the tokenizer puts before a text (BOS where the model has one).
        windows: how many windows.
        length: tokens a window, the prefix counted.

    Returns:
        `windows` lists of `length` ids, each beginning with `prefix`.

    Raises:
        DataUnavailable: the text is too short for that.
    """
    body = length - len(prefix)
    if body < 2:
        raise DataUnavailable(f"windows of {length} tokens leave no text behind {len(prefix)} special tokens")
    if len(text_ids) < windows * body:
        raise DataUnavailable(
            f"the evaluation text has {len(text_ids)} tokens; {windows} windows of {length} need {windows * body}",
            "use a longer text, or lower evaluation.windows or evaluation.window_tokens in info.yml",
        )
    return [[*prefix, *text_ids[at * body : (at + 1) * body]] for at in range(windows)]


def negative_log_likelihood(logits: np.ndarray[Any, Any], ids: Sequence[int]) -> float:
    """Returns the sum over the tokens after the first of -log p(token | tokens before), in nats.

    Args:
        logits: [len(ids), vocabulary]; row t predicts token t + 1, the last row is not used.
        ids: the tokens.
    """
    import numpy as np

    rows: np.ndarray[Any, Any] = logits[:-1].astype(np.float32, copy=False)
    rows = rows - rows.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(rows, np.asarray(ids)[1:, None], axis=1)[:, 0]
    return float((np.log(np.exp(rows).sum(axis=-1, dtype=np.float64)) - chosen).sum())


def perplexity(losses: Sequence[float], windows: Sequence[Sequence[int]]) -> Metric:
    """Returns the perplexity over all windows; the samples are the perplexities of the single windows.

    Args:
        losses: `negative_log_likelihood` of each window.
        windows: the windows.
    """
    counts = [len(ids) - 1 for ids in windows]
    samples = tuple(math.exp(loss / count) for loss, count in zip(losses, counts, strict=True))
    value = math.exp(sum(losses) / sum(counts))
    return Metric("perplexity", value, "", False, samples, f"{len(windows)} windows of {len(windows[0])} tokens")
