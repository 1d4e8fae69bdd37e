"""A loaded model that maps named arrays to named arrays, whether PyTorch or ONNX Runtime computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import DataUnavailable
from runner.evaluation.torch_form import TorchForm
from runner.models.adapter_weights import adapter_inputs
from runner.models.components import component_names
from runner.models.handle import ModelHandle
from runner.models.inputs import CACHE_WIDTH, cache_width

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class Forward(Protocol):
    """A loaded model. `prepare` and `arrays` are apart from `run`, so that only the model is timed."""

    def prepare(self, inputs: Arrays) -> Any:
        """Returns the inputs in the form that `run` takes."""
        ...

    def run(self, prepared: Any) -> Any:
        """Returns the model's outputs in the library's own form, when they are computed."""
        ...

    def arrays(self, outputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the outputs as fp32 arrays by name, in the model's order."""
        ...


def open_forward(
    model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", form: TorchForm | None = None
) -> Forward:
    """Loads a model of kind `hf`, `pytorch` or `onnx`.

    Args:
        model: the model.
        threads: threads of its operators.
        provider: execution provider; a PyTorch model runs on the device that it drives.
        form: how PyTorch runs it; eager in fp32 when None.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "onnx" and provider == "CUDAExecutionProvider" and not (component_names(model) or adapter_inputs(model)):
        from runner.evaluation.device_forward import DeviceForward

        return DeviceForward(model, threads, provider)
    if model.kind == "onnx":
        return OnnxForward(model, threads, provider)
    return TorchForward(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu", form or TorchForm())


def outputs_of(model: Forward, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Returns a loaded model's outputs for `inputs`, as fp32 arrays by name."""
    return model.arrays(model.run(model.prepare(inputs)))


class TorchForward:
    """The source model in PyTorch, in inference mode."""

    def __init__(self, model: ModelHandle, threads: int, device: str = "cpu", form: TorchForm | None = None) -> None:
        import inspect

        import torch

        from runner.data.scripted_model import load_module

        torch.set_num_threads(threads)
        form = form or TorchForm()
        self._torch = torch
        self._device = device
        self._dtype = form.dtype()
        module = load_module(model).to(device, self._dtype)
        parameters = inspect.signature(module.forward).parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._takes = None if takes_any else set(parameters)
        graphs = {"mode": "reduce-overhead"} if device == "cuda" else {}
        self._module: Any = torch.compile(module, dynamic=False, **graphs) if form.compiled else module

    def prepare(self, inputs: Arrays) -> dict[str, Any]:
        """Returns tensors on the model's device, of its floating-point type; what the module does not take is left out."""
        given = {
            name: self._torch.from_numpy(array).to(self._device)
            for name, array in inputs.items()
            if self._takes is None or name in self._takes
        }
        return {name: one.to(self._dtype) if one.is_floating_point() else one for name, one in given.items()}

    def run(self, prepared: dict[str, Any]) -> Any:
        """Returns the module's output."""
        with self._torch.inference_mode():
            outputs = self._module(**prepared)
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return outputs

    def arrays(self, outputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the tensors among the outputs; caches and other structures are left out."""
        if isinstance(outputs, Mapping):
            named = dict(outputs.items())
        else:
            listed = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            named = {f"output_{at}": value for at, value in enumerate(listed)}
        return {name: value.float().cpu().numpy() for name, value in named.items() if isinstance(value, self._torch.Tensor)}


class OnnxForward:
    """An ONNX graph in a session of its own. A graph with a fixed batch takes larger batches piece by piece."""

    def __init__(self, model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", session: Any = None) -> None:
        from runner.models.session import open_session

        self._session = session or open_session(model, threads, (provider,))
        self._cache_width = cache_width(model.folder) or 0
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs() if not one.name.startswith("present")]

    def prepare(self, inputs: Arrays) -> list[Any]:
        """Returns one feed a piece, of the graph's types; empty caches and positions are added where the graph has them.

        Raises:
            DataUnavailable: an input of the graph is missing.
        """
        feed = {name: self._input(name, inputs) for name in self._inputs}
        sizes = {array.shape[0] for array in feed.values() if array.ndim}
        whole = max(sizes, default=1)
        piece = self._fixed_batch() or whole
        if piece >= whole:
            return [feed]
        if whole % piece:
            raise DataUnavailable(f"the graph's batch is fixed to {piece}, and {whole} inputs do not fill such batches")
        return [{name: array[at : at + piece] for name, array in feed.items()} for at in range(0, whole, piece)]

    def run(self, prepared: list[Any]) -> list[Any]:
        """Returns the outputs of every piece."""
        return [self._session.run(self._outputs, feed) for feed in prepared]

    def arrays(self, outputs: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the outputs of all pieces together; the key-value cache is left out."""
        import numpy as np

        pieces = zip(*outputs, strict=True)
        return {
            name: np.concatenate(piece).astype(np.float32, copy=False)
            for name, piece in zip(self._outputs, pieces, strict=True)
        }

    def _fixed_batch(self) -> int | None:
        leading = {one.shape[0] for one in self._inputs.values() if one.shape and isinstance(one.shape[0], int)}
        return min(leading) if leading else None

    def _input(self, name: str, inputs: Arrays) -> Any:
        import numpy as np

        described = self._inputs[name]
        if described.type not in _DTYPES:
            raise DataUnavailable(f"the graph's input '{name}' is of type {described.type}, which no data comes in")
        dtype = np.dtype(_DTYPES[described.type])
        if name in inputs:
            return np.ascontiguousarray(inputs[name], dtype=dtype)
        ids = inputs.get("input_ids")
        if ids is not None and name == "position_ids":
            return np.tile(np.arange(ids.shape[1], dtype=dtype), (ids.shape[0], 1))
        if ids is not None and name == "token_type_ids":
            return np.zeros(ids.shape, dtype)
        if ids is not None and name.startswith("past"):
            shape = [
                axis if isinstance(axis, int) else self._cache_width if axis == CACHE_WIDTH else 0 if at else ids.shape[0]
                for at, axis in enumerate(described.shape)
            ]
            return np.zeros(shape, dtype)
        raise DataUnavailable(
            f"the data has no '{name}', which the graph takes", f"the data gives {', '.join(inputs)}; rename its columns"
        )
