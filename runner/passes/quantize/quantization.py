"""Dynamic or static quantisation, as an option says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.quantize.integer import quantize_dynamic, quantize_static
from runner.passes.quantize.options import CalibrationOptions


class OnnxQuantizationOptions(CalibrationOptions):
    """Options of OnnxQuantization; those of calibration count in static mode only."""

    quant_mode: Literal["static", "dynamic"] = Field("static", description="where ranges of activations come from")

    @model_validator(mode="after")
    def _has_data(self) -> OnnxQuantizationOptions:
        if self.quant_mode == "static" and self.data_config is None:
            raise ValueError("data_config is missing: static quantisation needs data; or set quant_mode to dynamic")
        return self


def quantize(model: ModelHandle, options: OnnxQuantizationOptions, context: PassContext) -> ModelHandle:
    """Quantises in the mode that the options say."""
    return (quantize_static if options.quant_mode == "static" else quantize_dynamic)(model, options, context)


PASS = Pass(
    name="OnnxQuantization",
    summary="Quantises weights, and activations either while the model runs or with ranges from calibration data.",
    options=OnnxQuantizationOptions,
    apply=quantize,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
    data_options=("data_config",),
    version=2,
)
