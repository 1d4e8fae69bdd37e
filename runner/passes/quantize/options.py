"""Options that the quantising passes share, in Olive's names, and how they read in onnxruntime.quantization's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from runner.errors import did_you_mean
from runner.passes.external_data import ExternalDataOptions
from runner.recipe.config import DataConfig

QuantizedType = Literal["QInt8", "QUInt8", "QInt16", "QUInt16", "QInt4", "QUInt4"]
_TYPES = {name.lower(): name for name in ("QInt8", "QUInt8", "QInt16", "QUInt16", "QInt4", "QUInt4")}
_TYPES |= {name[1:]: right for name, right in _TYPES.items()}  # Olive's newer spelling: int8, uint8 …

# What onnxruntime.quantization reads from its extra_options.
EXTRA_OPTIONS = (
    "ActivationRestrictedAsymmetric", "ActivationSymmetric", "AddQDQPairToWeight", "BlockSize", "CalibMaxIntermediateOutputs",
    "CalibMovingAverage", "CalibMovingAverageConstant", "CalibPercentile", "CalibTensorRangeSymmetric", "DedicatedQDQPair",
    "DefaultTensorType", "EnableSubgraph", "ForceQuantizeNoInputCheck", "MatMulConstBOnly", "MinimumRealRange",
    "OpTypesToExcludeOutputQuantization", "QDQDisableWeightAdjustForInt32Bias", "QDQKeepRemovableActivations",
    "QDQOpTypePerChannelSupportToAxis", "TensorQuantOverrides", "UseQDQContribOps", "WeightSymmetric", "extra.Sigmoid.nnapi",
)  # fmt: skip
_OWN_SWITCHES = ("ActivationSymmetric", "WeightSymmetric", "EnableSubgraph", "ForceQuantizeNoInputCheck", "MatMulConstBOnly")


def _type_name(given: Any) -> Any:
    return _TYPES.get(given.lower(), given) if isinstance(given, str) else given


class QuantizationOptions(ExternalDataOptions):
    """What dynamic and static quantisation have in common."""

    weight_type: QuantizedType = Field("QInt8", description="type of the weights: QInt8 or int8, QUInt8 or uint8 …")
    per_channel: bool = Field(True, description="one scale a channel of a weight, not one for all of it")
    reduce_range: bool = Field(
        False, description="use 7 bits of 8: exact on CPUs without VNNI, where signed 8-bit products saturate"
    )
    op_types_to_quantize: list[str] | None = Field(None, description="operator types to quantise")
    op_types_to_exclude: list[str] | None = Field(None, description="operator types to leave out of the default ones")
    nodes_to_quantize: list[str] | None = Field(
        None, description="quantise only these nodes; a name or a pattern such as */output/dense/*"
    )
    nodes_to_exclude: list[str] | None = Field(None, description="nodes to leave alone; a name or a pattern")
    quant_preprocess: bool = Field(True, description="fold constants and infer shapes first")
    extra_options: dict[str, Any] | None = Field(None, description="further options of onnxruntime.quantization, in its names")
    ActivationSymmetric: bool | None = Field(None, description="ranges of activations symmetric around zero")
    WeightSymmetric: bool | None = Field(None, description="ranges of weights symmetric around zero")
    EnableSubgraph: bool | None = Field(None, description="quantise the branches of If and Loop as well (dynamic)")
    ForceQuantizeNoInputCheck: bool | None = Field(
        None, description="quantise operators such as MaxPool even where their input is not quantised"
    )
    MatMulConstBOnly: bool | None = Field(None, description="quantise MatMul only where its second input is a weight")

    renamed: ClassVar[Mapping[str, str]] = {
        "precision": "weight_type",
        "activation_symmetric": "ActivationSymmetric",
        "weight_symmetric": "WeightSymmetric",
    }
    retired: ClassVar[Mapping[str, str]] = {
        "optimize_model": "quant_preprocess does it",
        "extra.Sigmoid.nnapi": "it stands in extra_options",
        "append_first_op_types_to_quantize_list": "op_types_to_quantize names all types",
        "prepare_qnn_config": "QNN is not among the targets",
        "qnn_extra_options": "QNN is not among the targets",
        "prepare_qdq_config": "quant_format says it",
        "user_script": "data_config names the script",
        "script_dir": "data_config names the script",
    }

    _weight_type_name = field_validator("weight_type", mode="before")(_type_name)

    @field_validator("extra_options")
    @classmethod
    def _known_extra_options(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        unknown = [name for name in given or {} if name not in EXTRA_OPTIONS]
        if unknown:
            raise ValueError(f"onnxruntime.quantization has no '{unknown[0]}'; {did_you_mean(unknown[0], EXTRA_OPTIONS)}")
        return given

    def extra(self) -> dict[str, Any]:
        """Returns onnxruntime.quantization's extra_options; a switch that has an option of its own wins."""
        own = {name: getattr(self, name) for name in _OWN_SWITCHES if getattr(self, name) is not None}
        return {**(self.extra_options or {}), **own}


class CalibrationOptions(QuantizationOptions):
    """What static quantisation needs besides: data, and what is made of the ranges seen in it."""

    data_config: str | DataConfig | None = Field(None, description="data to calibrate on: a name among data_configs, or itself")
    activation_type: QuantizedType = Field("QUInt8", description="type of the activations")
    calibrate_method: Literal["MinMax", "Entropy", "Percentile"] = Field("MinMax", description="how ranges are chosen")
    quant_format: Literal["QDQ", "QOperator"] = Field(
        "QDQ", description="QuantizeLinear and DequantizeLinear around operators, or quantised operators"
    )
    min_real_range: float | None = Field(None, gt=0, description="narrower ranges of activations are widened to this")
    tensor_quant_overrides: dict[str, list[dict[str, Any]]] | None = Field(
        None, description="how single tensors are quantised: quant_type, scale, zero_point, rmin, rmax, symmetric, by name"
    )
    calibration_providers: list[str] | None = Field(None, description="execution providers to calibrate with; CPU by default")

    renamed: ClassVar[Mapping[str, str]] = {
        **QuantizationOptions.renamed,
        "calibration_data_config": "data_config",
        "MinimumRealRange": "min_real_range",
    }
    retired: ClassVar[Mapping[str, str]] = {
        **QuantizationOptions.retired,
        "dataloader_func": "data_config says where data comes from",
        "dataloader_func_kwargs": "data_config says where data comes from",
        "data_dir": "data_config says where data comes from",
        "batch_size": "data_config says it",
    }

    _activation_type_name = field_validator("activation_type", mode="before")(_type_name)

    @field_validator("tensor_quant_overrides")
    @classmethod
    def _known_types(cls, given: dict[str, list[dict[str, Any]]] | None) -> dict[str, list[dict[str, Any]]] | None:
        """Spells the types as onnxruntime.quantization does."""
        if given is None:
            return None
        made = {
            tensor: [
                {**one, **({"quant_type": _type_name(one["quant_type"])} if "quant_type" in one else {})} for one in entries
            ]
            for tensor, entries in given.items()
        }
        for entries in made.values():
            for one in entries:
                if one.get("quant_type", "QInt8") not in _TYPES.values():
                    raise ValueError(
                        f"there is no quant_type '{one['quant_type']}'; {did_you_mean(str(one['quant_type']), _TYPES)}"
                    )
        return made

    def extra(self) -> dict[str, Any]:
        """Returns onnxruntime.quantization's extra_options; a switch that has an option of its own wins."""
        least = {} if self.min_real_range is None else {"MinimumRealRange": self.min_real_range}
        return {**super().extra(), **least}


class StaticOptions(CalibrationOptions):
    """Options of OnnxStaticQuantization."""

    quant_mode: Literal["static"] = Field("static", description="the name of the pass says it")

    @model_validator(mode="after")
    def _has_data(self) -> StaticOptions:
        if self.data_config is None:
            raise ValueError("data_config is missing: static quantisation needs data to calibrate on")
        return self
