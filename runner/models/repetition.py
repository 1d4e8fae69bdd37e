"""Tells when a model that writes greedily has fallen into repeating itself, and takes the repetition out."""

from __future__ import annotations

from collections.abc import Sequence

_TOKENS, _TIMES, _LONGEST_PHRASE = 40, 4, 56


def loops(tokens: Sequence[int]) -> bool:
    """Returns whether the tokens end in a phrase that stands there four times or oftener, over 40 tokens or more."""
    return len(tokens) >= _TOKENS and _phrase(tokens) > 0


def said_once(tokens: Sequence[int]) -> list[int]:
    """Returns the tokens with the phrase that they loop in once; as they are when they do not loop."""
    length, kept = _phrase(tokens), list(tokens)
    while length and kept[-length:] == kept[-2 * length : -length]:
        del kept[-length:]
    return kept


def _phrase(tokens: Sequence[int]) -> int:
    """Returns the length of the shortest phrase that the tokens end in often enough to be a loop, or 0."""
    for length in range(1, _LONGEST_PHRASE + 1):
        covered = length * max(_TIMES, -(-_TOKENS // length))
        if covered <= len(tokens) and tokens[-covered:-length] == tokens[len(tokens) - covered + length :]:
            return length
    return 0
