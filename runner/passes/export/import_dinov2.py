"""Takes the weights of a DINOv2 out of an ONNX graph, with or without a head on it, and makes a Hugging Face folder of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import onnx
    import torch
    from transformers import Dinov2Config

_ARCHITECTURE = "Dinov2Model"
_STEM = "embeddings.patch_embeddings.projection.weight"
_CLASS, _MASK, _POSITIONS = "embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"
_HEAD_WIDTH = 64  # of every size of DINOv2
# How DINOv2 takes its pictures: the settings of facebook/dinov2-*.
_SHORTEST_EDGE, _CROP = 256, 224


class ImportDinov2Options(PassOptions):
    """Options of ImportDinov2: it has none."""


def _apply(model: ModelHandle, options: ImportDinov2Options, context: PassContext) -> ModelHandle:
    from safetensors.torch import save_file

    context.say("reading the graph's weights into a Hugging Face folder")
    state = _state(read_graph(model.path).graph)
    _config(state).save_pretrained(context.output)
    save_file(state, context.output / "model.safetensors", metadata={"format": "pt"})
    _check(context.output)
    _save_processor(context)
    facts = {"model_type": "dinov2", "architecture": _ARCHITECTURE, "imported_from": model.file}
    return ModelHandle("hf", context.output, None, model.task, {**model.attributes, **facts})


def _check(folder: Path) -> None:
    """Raises ModelUnavailable unless the folder's weights are, one for one, those of the model that its configuration tells."""
    from transformers import Dinov2Model

    try:
        _, found = Dinov2Model.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except RuntimeError as error:  # a shape that the configuration does not give
        raise ModelUnavailable("model-damaged", f"its weights do not fit together: {error}", "fetch it again") from None
    wrong = [*found["missing_keys"], *found["unexpected_keys"]]
    if wrong:
        cause = f"its weights are not those of a DINOv2 model: {', '.join(sorted(wrong)[:5])}"
        raise ModelUnavailable("model-damaged", cause, "fetch it again")


def _state(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Returns the weights under the names that they have on the hub, in fp32.

    The tracing exporter keeps the names of what it leaves alone. It transposes the weights of linear layers, which go by the
    names of their MatMuls, and folds slices of the position embedding.
    """
    import torch
    from onnx import numpy_helper

    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    stem = next((name for name in arrays if name.endswith(_STEM)), None)
    if stem is None:
        raise RunFailed("unsupported-architecture", "the graph has no patch embedding of DINOv2", "DINOv2 models are read")
    prefix = stem.removesuffix(_STEM)
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    for node in graph.node:
        scope, _, kind = node.name.strip("/").replace("/", ".").rpartition(".")
        if kind == "MatMul" and node.input[1] in arrays and scope.startswith(prefix):
            state[f"{scope.removeprefix(prefix)}.weight"] = arrays[node.input[1]].T.contiguous()
    width = len(arrays[stem])
    state.setdefault(_MASK, torch.zeros(1, width))  # used in training only
    if _POSITIONS not in state:
        state[_POSITIONS] = _positions([array for name, array in arrays.items() if not name.startswith(prefix)], width)
    return {name: array.float().contiguous() for name, array in state.items()}


def _positions(anonymous: list[torch.Tensor], width: int) -> torch.Tensor:
    """Returns the position embedding, [1, 1 + patches, width]: the class token's and the patches' put together."""
    import torch

    first = [one for one in anonymous if tuple(one.shape) == (1, 1, width)]
    patches = [one for one in anonymous if one.ndim == 3 and one.shape[::2] == (1, width) and one.shape[1] > 1]
    if len(first) != 1 or len(patches) != 1:
        raise ModelUnavailable("model-damaged", "the graph has no position embedding of DINOv2", "fetch it again")
    return torch.cat([first[0], patches[0]], dim=1)


def _config(state: Mapping[str, torch.Tensor]) -> Dinov2Config:
    from transformers import Dinov2Config

    width, _, _, patch = state[_STEM].shape
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")}
    inner: Any = state.get("encoder.layer.0.mlp.fc1.bias")
    if not layers or inner is None:
        raise RunFailed("unsupported-architecture", "its feed-forward layers are gated", "sizes small, base and large are read")
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD_WIDTH,
        mlp_ratio=len(inner) // width,
        patch_size=patch,
        image_size=patch * math.isqrt(state[_POSITIONS].shape[1] - 1),
        architectures=[_ARCHITECTURE],
    )


def _save_processor(context: PassContext) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    BitImageProcessorPil(
        size={"shortest_edge": _SHORTEST_EDGE},
        crop_size={"height": _CROP, "width": _CROP},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(context.output)


PASS = Pass(
    name="ImportDinov2",
    summary="Takes the weights of a DINOv2 out of an ONNX graph into a Hugging Face folder, with its image processor.",
    options=ImportDinov2Options,
    apply=_apply,
    takes=("onnx",),
    gives="hf",
    packages=("transformers", "torch", "onnx"),
)
