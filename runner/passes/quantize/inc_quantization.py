"""The quantisation of Intel's neural-compressor, done with onnxruntime.quantization and this project's kernels.

neural-compressor has had no ONNX back end since 3.0, and 2.x does not go with NumPy 2. What its recipes ask for are known
algorithms: static and dynamic quantisation to 8 bits, and weights only by rounding or GPTQ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from runner.errors import RunFailed
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme
from runner.passes.declaration import Batches, Pass, PassContext
from runner.passes.external_data import ExternalDataOptions
from runner.passes.quantize.block_quantization import BlockOptions, Blocks, WeightBits, nearest, quantize_blocks
from runner.passes.quantize.block_rtn import fit
from runner.passes.quantize.graph_gptq import graph_hessians, solve_gptq
from runner.passes.quantize.integer import quantize_dynamic, quantize_static
from runner.passes.quantize.options import CalibrationOptions, QuantizationOptions
from runner.recipe.config import DataConfig, Model

_SMALLEST_BLOCK = 16
_TUNED = "this runner measures with an evaluator and its goals instead"


class WeightOnlyConfig(Model):
    """How weights are quantised where only they are."""

    bits: WeightBits = Field(4, description="bits of a weight")
    group_size: int = Field(32, ge=-1, description="weights of a column that share one scale; -1 for all of them")
    scheme: Literal["asym", "sym"] = Field("asym", description="with or without zero points")
    algorithm: Literal["RTN", "GPTQ"] = Field("RTN", description="round to nearest, or GPTQ on calibration data")

    @field_validator("algorithm", mode="before")
    @classmethod
    def _upper(cls, given: Any) -> Any:
        return given.upper() if isinstance(given, str) else given

    @field_validator("group_size")
    @classmethod
    def _a_power(cls, given: int) -> int:
        if given != -1 and (given < _SMALLEST_BLOCK or given & (given - 1)):
            raise ValueError("ONNX Runtime's kernels want a power of two from 16 on, or -1")
        return given


class IncOptions(ExternalDataOptions):
    """Options of the three passes."""

    approach: Literal["static", "dynamic", "weight_only"] = Field("static", description="what is quantised, and when")
    data_config: str | DataConfig | None = Field(
        None, description="data to calibrate on, for static quantisation and GPTQ: a name among data_configs, or itself"
    )
    weight_only_config: WeightOnlyConfig = Field(
        WeightOnlyConfig(), description="bits, group_size, scheme and algorithm of approach weight_only"
    )
    quant_format: Literal["QDQ", "QOperator"] = Field("QOperator", description="how static quantisation is written")
    calibration_sampling_size: list[int] | int = Field([100], description="most examples to calibrate on")
    reduce_range: bool = Field(False, description="use 7 bits of 8: exact on CPUs without VNNI")

    retired: ClassVar[Mapping[str, str]] = {
        "device": "the target says it",
        "backend": "the target says it",
        "domain": "the operators in the graph say it",
        "workspace": "nothing is kept beside the result",
        "recipes": "they are neural-compressor's own",
        "quant_level": "nothing is tuned by trial",
        "excluded_precisions": "8-bit integers and fp32 are mixed, nothing else",
        "tuning_criterion": _TUNED,
        "metric": _TUNED,
        "op_type_dict": "they are neural-compressor's own",
        "diagnosis": "it is neural-compressor's own",
    }

    @model_validator(mode="after")
    def _has_data(self) -> IncOptions:
        gptq = self.approach == "weight_only" and self.weight_only_config.algorithm == "GPTQ"
        if (gptq or self.approach == "static") and self.data_config is None:
            raise ValueError(f"data_config is missing: {'GPTQ' if gptq else 'static quantisation'} needs data to calibrate on")
        return self


class IncQuantizationOptions(IncOptions):
    """Options of IncQuantization."""


def quantize(model: ModelHandle, options: IncOptions, context: PassContext) -> ModelHandle:
    """Quantises as neural-compressor's approach says.

    Raises:
        DataUnavailable: there is no calibration data.
        RunFailed: GPTQ is asked for on a folder of several graphs, whose inner inputs no data config gives.
    """
    stored = {name: getattr(options, name) for name in ExternalDataOptions.model_fields}
    context = replace(context, data=partial(_some, context.data, _examples(options)))
    if options.approach == "weight_only":
        context.say(f"quantising the weights by {options.weight_only_config.algorithm}, in place of neural-compressor")
        return _weights_only(model, options, BlockOptions(**stored), context)
    context.say("onnxruntime.quantization in place of neural-compressor")
    if options.approach == "dynamic":
        return quantize_dynamic(model, QuantizationOptions(**stored, reduce_range=options.reduce_range), context)
    given = CalibrationOptions(
        **stored, reduce_range=options.reduce_range, data_config=options.data_config, quant_format=options.quant_format
    )
    return quantize_static(model, given, context)


def _examples(options: IncOptions) -> int:
    given = options.calibration_sampling_size
    return max(given) if isinstance(given, list) else given


@dataclass(frozen=True)
class _First:
    """The first examples of some data, whole batches at a time."""

    data: Batches
    most: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seen = 0
        for batch in self.data:
            if seen >= self.most:
                return
            seen += max((len(array) for array in batch.values() if getattr(array, "ndim", 0)), default=1)
            yield batch


def _some(data: Any, most: int, name: Any) -> Batches:
    return _First(data(name), most)


def _weights_only(model: ModelHandle, options: IncOptions, stored: BlockOptions, context: PassContext) -> ModelHandle:
    asked = options.weight_only_config
    solve = nearest(fit)
    if asked.algorithm == "GPTQ":
        if model.kind != "onnx":
            raise RunFailed(
                "gptq-several-graphs", "GPTQ needs the inputs of one graph", "quantise before ModelBuilder, with Gptq"
            )
        named = options.data_config
        given: Any = named.model_dump(mode="json") if isinstance(named, DataConfig) else named
        data = context.data(given)
        hessians = graph_hessians(model, model.file or "model.onnx", data, context.scratch, context.threads)
        context.say(f"saw {len(hessians)} inputs of products")
        solve = solve_gptq(hessians, solve)
    scheme = Scheme(asked.bits, asked.group_size, asked.scheme == "sym")
    return quantize_blocks(model, Blocks(solve, scheme, ("MatMul",), stored.level(context.target.name)), stored, context)


PASS = Pass(
    name="IncQuantization",
    summary="Quantises as neural-compressor's recipes say: statically, dynamically or weights only.",
    options=IncQuantizationOptions,
    apply=quantize,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx", "torch"),
    data_options=("data_config",),
    version=3,
)
