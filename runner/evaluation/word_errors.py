"""Word error rate: substituted, left out and added words over the words that were said (jiwer)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec

from runner.errors import PackageMissing, Problem
from runner.evaluation.metric import Metric

_BETWEEN_WORDS = re.compile(r"[^\w']+|_+")


def words(text: str) -> str:
    """Returns the words of a text as they are compared: in small letters, without punctuation, one space between two."""
    return " ".join(_BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold().replace("’", "'")).split())


def word_error_rate(references: Sequence[str], found: Sequence[str]) -> Metric:
    """Returns the word error rate over all clips, 0 when all words are right; its samples are the rates of the clips.

    Args:
        references: what was said, a text a clip.
        found: what a model heard, in the same order.

    Raises:
        PackageMissing: jiwer is not installed.
    """
    if find_spec("jiwer") is None:
        raise PackageMissing(Problem("package-missing", "word error rates need jiwer", remedy="pip install jiwer"))
    import jiwer

    said, heard = [words(text) for text in references], [words(text) for text in found]
    rates = tuple(float(jiwer.wer(one, other)) for one, other in zip(said, heard, strict=True))
    count = sum(len(text.split()) for text in said)
    return Metric("wer", float(jiwer.wer(said, heard)), "", False, rates, f"{len(said)} clips, {count} words")
