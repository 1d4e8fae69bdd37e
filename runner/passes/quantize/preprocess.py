"""What quantisers want of a graph beforehand: constants folded, types and shapes stated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from runner.errors import RunFailed
from runner.models.files import external_files, read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.each_graph import rewrite_each
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx


class OnnxQuantizationPreprocessOptions(ExternalDataOptions):
    """Options of OnnxQuantizationPreprocess."""

    skip_optimization: bool = Field(False, description="do not let ONNX Runtime fold constants and fuse operators")
    skip_onnx_shape: bool = Field(False, description="no shapes by ONNX's inference")
    skip_symbolic_shape: bool = Field(False, description="no shapes by ONNX Runtime's symbolic inference")


def _apply(model: ModelHandle, options: OnnxQuantizationPreprocessOptions, context: PassContext) -> ModelHandle:
    def change(_: onnx.ModelProto, name: str) -> onnx.ModelProto:
        return _prepare(model.folder / name, context.scratch / name, options, context)

    return rewrite_each(model, context, change, options.external_data())


def _prepare(source: Path, prepared: Path, options: OnnxQuantizationPreprocessOptions, context: PassContext) -> onnx.ModelProto:
    """Returns the graph at `source` prepared; without symbolic shapes where that inference does not know an operator."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared.parent.mkdir(parents=True, exist_ok=True)
    for symbolic in (True, False):
        if symbolic and options.skip_symbolic_shape:
            continue
        try:
            quant_pre_process(
                str(source),
                str(prepared),
                auto_merge=True,
                save_as_external_data=bool(external_files(source)),
                external_data_location=f"{prepared.name}.data",
                skip_optimization=options.skip_optimization,
                skip_onnx_shape=options.skip_onnx_shape,
                skip_symbolic_shape=not symbolic,
            )
        except Exception as error:  # both inferences and ONNX Runtime raise classes of their own, some plain Exception
            if not symbolic:
                raise RunFailed(
                    "quantization-preprocess",
                    f"ONNX Runtime cannot prepare {source.name}: {error}",
                    "leave the failing part out: skip_optimization or skip_onnx_shape",
                ) from error
            context.say(f"{source.name}: no symbolic shapes, for ONNX Runtime's inference does not know the graph ({error})")
        else:
            break
    return read_graph(prepared)


PASS = Pass(
    name="OnnxQuantizationPreprocess",
    summary="Folds constants and states types and shapes, which quantisers need.",
    options=OnnxQuantizationPreprocessOptions,
    apply=_apply,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
)
