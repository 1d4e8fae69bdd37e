"""Every pass, in one literal table. A pass is imported when it is asked for, so that commands start at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.passes.declaration import Pass
from runner.recipe.options import PassOptions

# Olive's name -> the module that declares it as PASS.
MODULES = {
    "AddOliveMetadata": "runner.passes.graph.metadata",
    "Awq": "runner.passes.quantize.awq",
    "CaptureSplitInfo": "runner.passes.graph.capture_split",
    "ComposeOnnxModels": "runner.passes.graph.compose",
    "DoRA": "runner.passes.finetune.dora",
    "DynamicToFixedShape": "runner.passes.graph.fixed_shape",
    "ExtractAdapters": "runner.passes.graph.extract_adapters",
    "Gptq": "runner.passes.quantize.gptq",
    "GraphSurgeries": "runner.passes.graph.surgeries",
    "IncDynamicQuantization": "runner.passes.quantize.inc_dynamic",
    "IncQuantization": "runner.passes.quantize.inc_quantization",
    "IncStaticQuantization": "runner.passes.quantize.inc_static",
    "LoHa": "runner.passes.finetune.loha",
    "LoKr": "runner.passes.finetune.lokr",
    "LoRA": "runner.passes.finetune.lora",
    "MatMulNBitsToQDQ": "runner.passes.quantize.qdq_from_nbits",
    "MergeAdapterWeights": "runner.passes.finetune.merge_adapter",
    "MixedPrecisionOverrides": "runner.passes.quantize.mixed_precision_overrides",
    "ModelBuilder": "runner.passes.genai.model_builder",
    "OnnxBlockWiseRtnQuantization": "runner.passes.quantize.block_rtn",
    "OnnxConversion": "runner.passes.export.onnx_conversion",
    "OnnxDynamicQuantization": "runner.passes.quantize.dynamic_quantization",
    "OnnxFloatToFloat16": "runner.passes.graph.float16",
    "OnnxHqqQuantization": "runner.passes.quantize.hqq",
    "OnnxIODataTypeConverter": "runner.passes.graph.io_types",
    "OnnxKQuantQuantization": "runner.passes.quantize.kquant",
    "OnnxOpVersionConversion": "runner.passes.graph.opset_version",
    "OnnxPeepholeOptimizer": "runner.passes.graph.peephole",
    "OnnxQuantization": "runner.passes.quantize.quantization",
    "OnnxQuantizationPreprocess": "runner.passes.quantize.preprocess",
    "OnnxStaticQuantization": "runner.passes.quantize.static_quantization",
    "OrtMixedPrecision": "runner.passes.graph.mixed_precision",
    "OrtSessionParamsTuning": "runner.passes.graph.session_tuning",
    "OrtTransformersOptimization": "runner.passes.graph.transformers_optimization",
    "QLoRA": "runner.passes.finetune.qlora",
    "QuaRot": "runner.passes.quantize.quarot",
    "Rtn": "runner.passes.quantize.rtn",
    "SelectiveMixedPrecision": "runner.passes.quantize.selective_mixed_precision",
    "SliceGPT": "runner.passes.sparsify.slicegpt",
    "SparseGPT": "runner.passes.sparsify.sparsegpt",
    "SplitModel": "runner.passes.graph.split",
}

# Steps that the engine puts before a recipe's own: they turn a source into a Hugging Face or diffusers folder.
SOURCE_MODULES = {
    "ImportCtranslate2": "runner.passes.export.import_ctranslate2",
    "ImportDinov2": "runner.passes.export.import_dinov2",
    "ImportGguf": "runner.passes.export.import_gguf",
    "StandInGraph": "runner.passes.export.stand_in_graph",
    "TinyPipeline": "runner.passes.export.tiny_pipeline",
    "TinyTwin": "runner.passes.export.tiny_twin",
}

# Other names that Olive has for them.
_SPELLINGS = {"AutoAWQQuantizer": "Awq", "GptqQuantizer": "Gptq"}

_BY_LOWER = {name.lower(): right for name, right in (*zip(MODULES, MODULES, strict=True), *_SPELLINGS.items())}


@cache
def get(name: str) -> Pass:
    """Returns the declaration of the pass (or source step) of exactly that name.

    Raises:
        InvalidRecipe: there is none.
    """
    module = MODULES.get(name) or SOURCE_MODULES.get(name)
    if module is None:
        raise InvalidRecipe(Problem("unknown-pass", f"there is no pass '{name}'", remedy=did_you_mean(name, MODULES)))
    declared: Pass = importlib.import_module(module).PASS
    return declared


def options_of(name: str) -> tuple[tuple[str, type[PassOptions]] | None, Sequence[str]]:
    """Returns ((right name, option model) or None, all names); the case of `name` does not matter."""
    right = _BY_LOWER.get(name.lower())
    return ((right, get(right).options) if right else None), list(MODULES)
