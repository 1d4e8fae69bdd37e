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
    "Gptq": "runner.passes.quantize.gptq",
    "ModelBuilder": "runner.passes.genai.model_builder",
    "OnnxConversion": "runner.passes.export.onnx_conversion",
    "OnnxDynamicQuantization": "runner.passes.quantize.dynamic_quantization",
    "OnnxFloatToFloat16": "runner.passes.graph.float16",
    "OnnxPeepholeOptimizer": "runner.passes.graph.peephole",
    "OnnxQuantization": "runner.passes.quantize.quantization",
    "OnnxStaticQuantization": "runner.passes.quantize.static_quantization",
    "OrtSessionParamsTuning": "runner.passes.graph.session_tuning",
    "OrtTransformersOptimization": "runner.passes.graph.transformers_optimization",
    "Rtn": "runner.passes.quantize.rtn",
}

# Steps that the engine puts before a recipe's own: they turn a source into a Hugging Face folder.
SOURCE_MODULES = {
    "ImportGguf": "runner.passes.export.import_gguf",
    "TinyTwin": "runner.passes.export.tiny_twin",
}

_BY_LOWER = {name.lower(): name for name in MODULES}


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
