"""neural-compressor's static quantisation, or weights only where the approach says so."""

from __future__ import annotations

from dataclasses import replace

from runner.passes.quantize.inc_quantization import PASS as INC
from runner.passes.quantize.inc_quantization import IncOptions


class IncStaticQuantizationOptions(IncOptions):
    """Options of IncStaticQuantization."""


PASS = replace(
    INC,
    name="IncStaticQuantization",
    summary="Quantises as neural-compressor's static recipes say, weights only where approach asks for it.",
    options=IncStaticQuantizationOptions,
)
