"""Small inputs for each component of a pipeline that draws: words for the encoders, noise for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.models.diffusion import TOKENS, component_of
from runner.models.diffusion_text import load_tokenizers, prompt_ids
from runner.models.inputs import GraphInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.models.handle import ModelHandle

SEED = 7
PROMPTS = ("a lighthouse at dawn, calm sea, soft light", "an old map of a town that never was")
_SIZES = {"batch": 2, "sequence": TOKENS, "height": 16, "width": 16, "steps": 1}
_STEP = 601.0  # of 1000: both the picture and the noise are still seen
_EDGE = 1024.0


def component_inputs(part: ModelHandle, wanted: Mapping[str, Sequence[int | str | None]]) -> dict[str, NDArray[Any]]:
    """Returns inputs of a component by name.

    Args:
        part: of a `diffusers` source.
        wanted: shapes of a graph's inputs; sizes that it fixes are kept.
    """
    component = component_of(part)
    random = np.random.default_rng(SEED)
    return {one.name: _values(part, one, _shape(one, wanted.get(one.name, ())), random) for one in component.inputs}


def _shape(one: GraphInput, wanted: Sequence[int | str | None]) -> tuple[int, ...]:
    given = [*wanted, *([None] * len(one.shape))]
    pairs = zip(given, one.shape, strict=False)
    return tuple(fixed if isinstance(fixed, int) else _SIZES.get(size, 2) if isinstance(size, str) else int(size or 1)
                 for fixed, size in pairs)  # fmt: skip


def _values(part: ModelHandle, one: GraphInput, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    if one.name == "input_ids":
        tokenizer = load_tokenizers(part.folder)[part.attributes["component"] == "text_encoder_2"]
        rows = [prompt_ids(tokenizer, PROMPTS[row % len(PROMPTS)]).ids[0] for row in range(shape[0])]
        return np.asarray(rows, dtype=one.dtype)[:, : shape[1]]
    if one.name == "timestep":
        return np.full(shape, _STEP, dtype=one.dtype)
    if one.name == "time_ids":
        return np.tile(np.asarray([_EDGE, _EDGE, 0, 0, _EDGE, _EDGE], dtype=one.dtype), (shape[0], 1))
    return random.standard_normal(shape).astype(one.dtype)
