"""Passes that Olive has and this runner does not, so that a known name is not taken for a typing error."""

from __future__ import annotations

# Beginning of the name -> the package that the pass drives; such recipes belong to another runner.
_VENDORS = {
    "openvino": "openvino",
    "qnn": "the Qualcomm AI runtime",
    "qairt": "the Qualcomm AI runtime",
    "vitis": "amd-quark and Vitis AI",
    "quark": "amd-quark",
    "nvmodelopt": "nvidia-modelopt",
    "mobius": "mobius-ai",
    "epcontext": "a vendor's compiling execution provider",
    "estimatenpulatency": "AMD's perf-estimator",
}

_NOT_YET = (
    "AppendPrePostProcessingOps", "GptqModel", "InsertBeamSearch", "KQuant", "MoEExpertsDistributor", "NemotronExport",
    "OnnxDAG", "OnnxModelOptimizer", "OptimumConversion", "OptimumMerging", "Rotate", "SpinQuant", "TorchTRTConversion",
    "VocabReducer",
)  # fmt: skip
_NOT_YET_LOWER = {name.lower() for name in _NOT_YET}


def elsewhere(name: str) -> str | None:
    """Returns what to tell somebody who asks for one of Olive's passes that is not here; None for any other name."""
    lowered = name.lower()
    vendor = next((package for beginning, package in _VENDORS.items() if lowered.startswith(beginning)), None)
    if vendor:
        return f"this pass of Olive's needs {vendor}; the recipe belongs to another runner"
    if lowered in _NOT_YET_LOWER:
        return "this pass of Olive's is not served here yet; 'recipe passes ls' shows what is"
    return None
