"""The weights of an adapter that were taken out of an ONNX graph: their file, and sessions that are given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.models.components import ChainedSession, component_names, read_manifest
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    Weights = Mapping[str, np.ndarray]

Format = Literal["onnx_adapter", "safetensors", "numpy", "pt"]
_ENDINGS: Mapping[Format, str] = {
    "onnx_adapter": ".onnx_adapter", "safetensors": ".safetensors", "numpy": ".npz", "pt": ".pt",
}  # fmt: skip


def save_weights(weights: Weights, folder: Path, stem: str, file_format: Format) -> str:
    """Writes weights into a file and returns its name.

    Args:
        weights: arrays by the names that the graph knows them by.
        folder: where the file goes.
        stem: its name without the ending.
        file_format: ``onnx_adapter`` is read by onnxruntime.LoraAdapter and onnxruntime_genai.Adapters.
    """
    path = folder / (stem + _ENDINGS[file_format])
    if file_format == "onnx_adapter":
        import onnxruntime

        adapter = onnxruntime.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(one) for name, one in weights.items()})
        adapter.export_adapter(str(path))
    elif file_format == "safetensors":
        from safetensors.numpy import save_file

        save_file(dict(weights), path)
    elif file_format == "numpy":
        import numpy as np

        arrays: dict[str, Any] = dict(weights)
        np.savez(path, **arrays)
    else:
        import torch

        torch.save({name: torch.from_numpy(one.copy()) for name, one in weights.items()}, path)
    return path.name


def read_weights(path: Path) -> dict[str, Any]:
    """Returns the arrays, by name, of a file that `save_weights` wrote."""
    if path.suffix == ".onnx_adapter":
        import onnxruntime

        stored = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        return {name: one.numpy().copy() for name, one in stored.items()}  # the views do not keep the file's memory
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path) as stored:
            return dict(stored)
    import torch

    return {name: one.numpy() for name, one in torch.load(path, weights_only=True).items()}


def adapter_inputs(model: ModelHandle) -> dict[str, Any]:
    """Returns the arrays that the graph of an `onnx` model takes its adapter from, by input; empty where it has none."""
    told = model.attributes.get("adapter_weights") or {}
    return read_weights(model.folder / told["file"]) if told.get("supplied_as") == "inputs" else {}


def inference_session(
    model: ModelHandle, options: onnxruntime.SessionOptions, providers: Sequence[str | tuple[str, Mapping[str, str]]]
) -> onnxruntime.InferenceSession:
    """Returns ONNX Runtime's session on the model's graph; the adapter's inputs, where it has them, are given at every run.

    Where the model lies in several graphs it is one that runs them one after the other.
    """
    import onnxruntime

    if parts := component_names(model):
        sessions, prefix = [], options.profile_file_prefix
        for number, part in enumerate(parts):
            options.profile_file_prefix = f"{prefix}-{number}"  # ONNX Runtime adds the second alone
            sessions.append(onnxruntime.InferenceSession(model.folder / part, options, providers=list(providers)))
        chained: Any = ChainedSession(sessions, read_manifest(model))
        return chained
    adapter = adapter_inputs(model)
    if not adapter:
        return onnxruntime.InferenceSession(model.path, options, providers=list(providers))

    class AdaptedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
        def get_inputs(self) -> list[Any]:
            return [one for one in super().get_inputs() if one.name not in adapter]

        def run(self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
            return super().run(output_names, {**adapter, **input_feed}, run_options)

    return AdaptedSession(model.path, options, providers=list(providers))
