"""neural-compressor's dynamic quantisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from runner.passes.quantize.inc_quantization import PASS as INC
from runner.passes.quantize.inc_quantization import IncOptions


class IncDynamicQuantizationOptions(IncOptions):
    """Options of IncDynamicQuantization; those of calibration and of weights alone do not count."""

    approach: Literal["dynamic"] = Field("dynamic", description="the name of the pass says it")


PASS = replace(
    INC,
    name="IncDynamicQuantization",
    summary="Quantises weights to 8 bits, and activations while the model runs, as neural-compressor's recipes say.",
    options=IncDynamicQuantizationOptions,
)
