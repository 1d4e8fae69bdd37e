"""Models in the form that scripts written for Olive are handed: a handler with a session that they run themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import torch

_CPU = "CPUExecutionProvider"


class OliveModelHandler:
    """What a script knows of a model: where it lies, what it is, and how to run it.

    Attributes:
        framework: ``ONNX`` or ``PyTorch``.
        model_path: the ONNX file, or the folder.
        model_attributes: facts of the model's configuration.
    """

    framework = ""

    def __init__(self, model_path: str | Path, **attributes: Any) -> None:
        self.model_path = str(model_path)
        self.model_attributes: dict[str, Any] = dict(attributes.pop("model_attributes", None) or {})
        self.handle = self._handle(Path(model_path), attributes)

    def _handle(self, path: Path, attributes: dict[str, Any]) -> ModelHandle:
        return ModelHandle("hf", path, None, attributes.get("task"))

    @property
    def size_on_disk(self) -> int:
        """Returns the bytes of the model's folder."""
        return sum(path.stat().st_size for path in self.handle.folder.rglob("*") if path.is_file())

    def get_hf_tokenizer(self) -> Any:
        """Returns the tokenizer that lies beside the model."""
        from runner.models.torch_source import load_tokenizer

        return load_tokenizer(self.handle)

    def get_hf_model_config(self) -> Any:
        """Returns the model's transformers configuration."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.handle.folder, local_files_only=True)


class ONNXModelHandler(OliveModelHandler):
    """An ONNX graph in a folder."""

    framework = "ONNX"

    def _handle(self, path: Path, attributes: dict[str, Any]) -> ModelHandle:
        named = attributes.get("onnx_file_name")
        file = path / named if named else path
        if file.is_dir():
            file = next(iter(sorted(file.glob("*.onnx"))), file / "model.onnx")
        self.model_path = str(file)
        return ModelHandle("onnx", file.parent, file.name)

    @property
    def io_config(self) -> dict[str, list[Any]]:
        """Returns names, shapes and numpy types of the graph's inputs and the names of its outputs."""
        from runner.models.files import read_graph
        from runner.models.inputs import graph_inputs

        inputs = graph_inputs(self.handle.path)
        return {
            "input_names": [one.name for one in inputs],
            "input_shapes": [list(one.shape) for one in inputs],
            "input_types": [one.dtype for one in inputs],
            "output_names": [one.name for one in read_graph(self.handle.path, weights=False).graph.output],
        }

    def load_model(self, **_: Any) -> Any:
        """Returns the graph as an onnx ModelProto."""
        import onnx

        return onnx.load(self.handle.path)

    def prepare_session(
        self,
        inference_settings: Mapping[str, Any] | None = None,
        device: str = "cpu",
        execution_providers: str | Sequence[str] | None = None,
        rank: int | None = None,
    ) -> Any:
        """Returns an ONNX Runtime session on the first of the providers; the other arguments do nothing."""
        from runner.models.session import open_session
        from runner.targets.target import usable_cores

        asked = [execution_providers] if isinstance(execution_providers, str) else list(execution_providers or [_CPU])
        return open_session(self.handle, usable_cores(), asked)

    def run_session(self, session: Any, inputs: Mapping[str, Any] | Sequence[Any], **kwargs: Any) -> list[Any]:
        """Returns the outputs, in the graph's order, for inputs by name or in the graph's order; lists and tensors will do."""
        import numpy as np

        described = session.get_inputs()
        named = inputs if isinstance(inputs, Mapping) else dict(zip((one.name for one in described), inputs, strict=False))
        types = {one.name: one.dtype for one in _graph_inputs(self.handle)}
        feed = {name: np.asarray(_plain(value), dtype=types.get(name)) for name, value in named.items() if name in types}
        found: list[Any] = session.run(None, feed, **kwargs)
        return found


class PyTorchModelHandler(OliveModelHandler):
    """A PyTorch module that a script loads."""

    framework = "PyTorch"

    def load_model(self, **_: Any) -> torch.nn.Module:
        """Returns the module: on the CPU, in evaluation mode."""
        from runner.data.scripted_model import load_module

        return load_module(self.handle)

    def prepare_session(self, *_: Any, **__: Any) -> torch.nn.Module:
        """Returns the module."""
        return self.load_model()

    def run_session(self, session: Any, inputs: Any, **kwargs: Any) -> Any:
        """Returns the module's output for inputs by name, in order, or for a single one; without gradients."""
        import torch

        with torch.no_grad():
            if isinstance(inputs, Mapping):
                return session(**inputs, **kwargs)
            return session(*inputs, **kwargs) if isinstance(inputs, (list, tuple)) else session(inputs, **kwargs)


class HfModelHandler(PyTorchModelHandler):
    """A transformers folder."""

    @property
    def model_name_or_path(self) -> str:
        """Returns the folder."""
        return self.model_path


def handler_of(model: ModelHandle) -> OliveModelHandler:
    """Returns the handler through which a script sees a model."""
    kinds = {"hf": HfModelHandler, "pytorch": PyTorchModelHandler}
    handler = kinds.get(model.kind, ONNXModelHandler)(model.path, model_attributes=model.attributes, task=model.task)
    handler.handle = model
    return handler


def _graph_inputs(model: ModelHandle) -> Any:
    from runner.models.inputs import graph_inputs

    return graph_inputs(model.path)


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
