"""Inputs of several sizes, made of those that are there: more or fewer of them, or other lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runner.bench.inputs_record import Sizes
from runner.bench.scenarios import PICTURE_BATCHES, SHORT_TEXT, TEXT_BATCHES
from runner.errors import DataUnavailable

Arrays = Mapping[str, np.ndarray[Any, Any]]


def batches_of(pixels: Arrays, sizes: Sizes) -> dict[int, Arrays]:
    """Returns batches of the given pictures by the number of pictures; they begin anew where they are too few.

    Args:
        pixels: arrays by input name, [n, ...].
        sizes: the batches that are asked for; the usual ones where none are.
    """
    return {
        size: {name: np.resize(array, (size, *array.shape[1:])) for name, array in pixels.items()}
        for size in sizes.batches or PICTURE_BATCHES
    }


def texts_of(
    rows: Callable[[int, int], Arrays], standard: int, longest: int, fixed: int | None, sizes: Sizes
) -> dict[tuple[int, int], Arrays]:
    """Returns batches of tokens by (texts, tokens of each).

    The usual ones are `TEXT_BATCHES` of short texts and of the standard length, and one text of the greatest length.

    Args:
        rows: makes so many rows of so many tokens.
        standard: tokens of the texts on which latency and throughput are measured.
        longest: tokens that the model takes at most.
        fixed: the only length that the optimised graph takes, where there is one.
        sizes: what is asked for.

    Raises:
        DataUnavailable: a length that is asked for is none that the model takes.
    """
    for length in sizes.lengths:
        if fixed is not None and length != fixed:
            raise DataUnavailable(f"the optimised graph takes {fixed} tokens and no other length", "leave out --length")
        if length > longest:
            raise DataUnavailable(f"{length} tokens are more than the {longest} that the model takes", "give a lower --length")
    lengths = sizes.lengths or tuple(sorted({min(SHORT_TEXT, standard), standard} if fixed is None else {standard}))
    batches = sizes.batches or TEXT_BATCHES
    asked = {(batch, length) for batch in batches for length in lengths}
    if not sizes.lengths and fixed is None:
        asked.add((batches[0], longest))
    return {size: rows(*size) for size in sorted(asked, key=lambda size: (size[1], size[0]))}
