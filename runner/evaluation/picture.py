"""How far the picture that a pipeline draws lies from the one of the PyTorch pipeline that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runner.evaluation.drawers import TorchDrawer
from runner.evaluation.metric import Metric
from runner.evaluation.probe_drawing import PROMPTS
from runner.models.diffusion_pipeline import DEFAULT_GUIDANCE, DrawingPipeline, Wanted
from runner.models.handle import ModelHandle

Picture = np.ndarray[Any, Any]

STEPS = 4
_PIXELS = 128  # edge of the picture: enough for every block of the models, few enough for the CPU
_BEST = 120.0  # decibels: what is told of pictures that are the same


class PictureParity:
    """The picture of one source, against which those of steps are compared.

    Args:
        source: the `diffusers` source.
        threads: threads to compute with.
    """

    def __init__(self, source: ModelHandle, threads: int) -> None:
        self.source = source
        self.threads = threads

    def compare(self, model: ModelHandle, provider: str) -> dict[str, Any]:
        """Returns `psnr_db`, the peak signal-to-noise ratio of the model's picture to the source's, and what was drawn.

        Both start from the same noise; the model draws on an execution provider.

        Raises:
            RunFailed: the pipeline does not run.
        """
        drawn = DrawingPipeline(model, self.threads, provider).draw(self._wanted)
        return {"psnr_db": psnr(drawn, self._expected), "pixels": list(drawn.shape[:2]), "steps": STEPS}

    @cached_property
    def _wanted(self) -> Wanted:
        guidance = DEFAULT_GUIDANCE[self.source.attributes["model_variant"]]
        return Wanted(PROMPTS[0], None, STEPS, guidance, 0, _PIXELS, _PIXELS)

    @cached_property
    def _expected(self) -> Picture:
        return TorchDrawer(self.source, self.threads).draw(self._wanted)


def psnr(one: Picture, other: Picture) -> float:
    """Returns the peak signal-to-noise ratio of two pictures from 0 to 1, in decibels; at most 120.

    Raises:
        ValueError: their shapes differ.
    """
    if one.shape != other.shape:
        raise ValueError(f"pictures of {one.shape} and {other.shape} cannot be compared")
    error = float(np.square(one.astype(np.float64) - other.astype(np.float64)).mean())
    return min(_BEST, -10.0 * math.log10(error)) if error else _BEST


def mean_psnr(references: Sequence[Path], drawn: Sequence[Path]) -> Metric:
    """Returns the mean of the ratios of pictures to their references, each a .npy file; its samples are the single ones."""
    ratios = tuple(psnr(np.load(one), np.load(other)) for one, other in zip(drawn, references, strict=True))
    return Metric("psnr", sum(ratios) / len(ratios), "dB", True, ratios)
