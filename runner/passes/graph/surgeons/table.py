"""Every surgeon, Olive's and our own, and Olive's that are not served, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from runner.passes.graph.surgeons.arithmetic import (
    DecomposeQuickGelu,
    GemmToMatMulAdd,
    MatMulAddToGemm,
    ReciprocalMulToDiv,
    ReplaceErfWithTanh,
)
from runner.passes.graph.surgeons.attention import (
    AttentionMaskToSequenceLengths,
    DecomposeRotaryEmbedding,
    PackedAttentionToLoopMHA,
    PackedAttentionToPackedMHA,
    RemoveRopeMultiCache,
    ReplaceAttentionMaskValue,
)
from runner.passes.graph.surgeons.cleanup import DeduplicateNodes, DeduplicateSubgraphInitializers, RemoveMemcpy
from runner.passes.graph.surgeons.embeddings import QuantizeEmbeddingInt8, ShareEmbeddingLmHead, TieWordEmbeddings
from runner.passes.graph.surgeons.io import (
    AddIntermediateTensorsToOutputs,
    ExposeOutputs,
    InferShapes,
    RemoveAllTensorValueShapes,
    RemoveInitializerFromInputs,
    RemoveInputs,
    RemoveShapes,
    RenameInputDims,
    RenameInputs,
    RenameOutputDims,
    RenameOutputs,
    ReorderInputs,
    ZeroOutInput,
)
from runner.passes.graph.surgeons.normalization import (
    PowReduceSumPowDiv2LpNorm,
    RMSNormToL2Norm,
    SimplifiedLayerNormToL2Norm,
    SimplifiedLayerNormToRMSNorm,
)
from runner.passes.graph.surgeons.pooling import PoolSentences
from runner.passes.graph.surgeons.quantization import (
    ExposeQuantizedOutput,
    QDQToClip,
    RemoveDeqLin,
    RemoveGidxFromMatMulNBits,
    RemoveQDQ,
)

_Any = (
    AddIntermediateTensorsToOutputs | AttentionMaskToSequenceLengths | DecomposeQuickGelu | DecomposeRotaryEmbedding
    | DeduplicateNodes | DeduplicateSubgraphInitializers | ExposeOutputs | ExposeQuantizedOutput | GemmToMatMulAdd
    | InferShapes | MatMulAddToGemm | PackedAttentionToLoopMHA | PackedAttentionToPackedMHA | PoolSentences
    | PowReduceSumPowDiv2LpNorm | QDQToClip | QuantizeEmbeddingInt8 | RMSNormToL2Norm | ReciprocalMulToDiv
    | RemoveAllTensorValueShapes | RemoveDeqLin | RemoveGidxFromMatMulNBits | RemoveInitializerFromInputs | RemoveInputs
    | RemoveMemcpy | RemoveQDQ | RemoveRopeMultiCache | RemoveShapes | RenameInputDims | RenameInputs | RenameOutputDims
    | RenameOutputs | ReorderInputs | ReplaceAttentionMaskValue | ReplaceErfWithTanh | ShareEmbeddingLmHead
    | SimplifiedLayerNormToL2Norm | SimplifiedLayerNormToRMSNorm | TieWordEmbeddings | ZeroOutInput
)  # fmt: skip

SURGEONS = tuple(sorted(one.__name__ for one in _Any.__args__))
_BY_LOWER = {name.lower(): name for name in SURGEONS}

# Olive's surgeons for accelerators whose tensors all have four dimensions.
_FOUR_DIMENSIONS = (
    "Flatten", "Gather", "GatherElements", "MatMulToTransposeConvTranspose", "Non4DExpand", "Non4DInitializers", "Non4DLpNorm",
    "Non4DModelInputs", "Non4DModelOutputs", "Non4DReshape", "Non4DSlice", "Non4DTranspose", "ReduceMax",
    "RemoveIntermediarySqueezeAndUnsqueeze", "ReshapeClipReduceSum", "ReshapeReduceSum", "StandaloneReduceSum",
)  # fmt: skip
_ELSEWHERE = {name.lower(): name for name in _FOUR_DIMENSIONS}


def _spelt(given: Any) -> Any:
    """Spells the surgeon's name right.

    Raises:
        ValidationError: at `surgeon`, where it is missing or names none of ours.
    """
    if not isinstance(given, Mapping):
        return given
    name = given.get("surgeon")
    if isinstance(name, str) and name.lower() in _BY_LOWER:
        return {**given, "surgeon": _BY_LOWER[name.lower()]}
    kind: str | PydanticCustomError = "missing" if name is None else _unknown(str(name))
    details = InitErrorDetails(type=kind, loc=("surgeon",), input=dict(given))
    raise ValidationError.from_exception_data("surgery", [details])


def _unknown(name: str) -> PydanticCustomError:
    if name.lower() in _ELSEWHERE:
        return PydanticCustomError(
            "not_served",
            "the surgeon {name} of Olive's is not served: it gives tensors four dimensions for a deep-learning accelerator, and"
            " CPU, CUDA and DirectML have no use for that",
            {"name": _ELSEWHERE[name.lower()]},
        )
    return PydanticCustomError("unknown_name", "there is no surgeon '{given}'", {"given": name, "known": SURGEONS})


Surgery = Annotated[_Any, Field(discriminator="surgeon"), BeforeValidator(_spelt)]
