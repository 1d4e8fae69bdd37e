"""Weights and activations in 8 bits, with ranges of activations seen in calibration data."""

from __future__ import annotations

from runner.passes.declaration import Pass
from runner.passes.quantize.integer import quantize_static
from runner.passes.quantize.options import StaticOptions

PASS = Pass(
    name="OnnxStaticQuantization",
    summary="Quantises weights and activations, with ranges found on calibration data.",
    options=StaticOptions,
    apply=quantize_static,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
    data_options=("data_config",),
    version=2,
)
