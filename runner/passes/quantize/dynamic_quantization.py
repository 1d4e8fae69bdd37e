"""Weights in 8 bits; activations are quantised while the model runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.passes.declaration import Pass
from runner.passes.quantize.integer import quantize_dynamic
from runner.passes.quantize.options import QuantizationOptions


class OnnxDynamicQuantizationOptions(QuantizationOptions):
    """Options of OnnxDynamicQuantization."""

    quant_mode: Literal["dynamic"] = Field("dynamic", description="the name of the pass says it")


PASS = Pass(
    name="OnnxDynamicQuantization",
    summary="Quantises weights to 8 bits, and activations while the model runs; needs no data.",
    options=OnnxDynamicQuantizationOptions,
    apply=quantize_dynamic,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
    leaves=("vae_encoder", "vae_decoder"),  # convolutions and few small products, whose errors are seen in every pixel
    version=2,
)
