"""Runs a model of any kind on given inputs and returns its outputs as fp32 arrays by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import RunFailed
from runner.evaluation.probe_inputs import GENERATES, NoProbe, Shape
from runner.evaluation.probe_speech import speech_outputs
from runner.models.adapter_weights import inference_session
from runner.models.handle import ModelHandle
from runner.models.session import open_session, raised_by_runtime

if TYPE_CHECKING:
    import onnxruntime
    import torch
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

CPU = "CPUExecutionProvider"
DOES_NOT_RUN = "output-does-not-run"  # rule of a model that does not load, or stops
GENERATED = "generated"  # what a model of onnxruntime-genai writes by itself
DECODED = 8  # tokens fed one at a time behind the prompt, through the key-value cache
WHILE_DECODING = "logits_while_decoding"


def torch_outputs(model: ModelHandle, inputs: Mapping[str, NDArray[Any]], threads: int) -> Arrays:
    """Returns the tensors that the source module gives; for a language model also the rows of the last tokens again."""
    import torch

    from runner.data.scripted_model import load_module
    from runner.models.torch_source import load_mapped

    module = load_mapped(model) or load_module(model)
    torch.set_num_threads(threads)
    given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    with torch.inference_mode():
        result = module(**given) if _takes_by_name(module, given) else module(*given.values())
    if (model.task or "").startswith(GENERATES) and hasattr(result, "logits"):
        logits = result.logits.float().numpy()
        return {"logits": logits, WHILE_DECODING: logits[:, -DECODED:]}
    if isinstance(result, Mapping):
        tensors = {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
    else:
        listed = result if isinstance(result, (tuple, list)) else (result,)
        tensors = dict(zip(_output_names(model, len(listed)), listed, strict=False))
        tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    return {name: value.float().numpy() for name, value in tensors.items()}


def _takes_by_name(module: torch.nn.Module, given: Mapping[str, Any]) -> bool:
    """A script may name its graph's inputs otherwise than its module's arguments; then their order counts."""
    parameters = inspect.signature(module.forward).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return open_ended or all(name in parameters for name in given)


def _output_names(model: ModelHandle, count: int) -> list[str]:
    from runner.data.scripted_model import io_config

    named = list(io_config(model).output_names)
    return [*named, *(f"output_{at}" for at in range(len(named), count))]


def genai_outputs(model: ModelHandle, inputs: Mapping[str, NDArray[Any]], threads: int, *, on_cpu: bool = True) -> Arrays:
    """Returns the logits of a text, whose last tokens are run one by one, and what the model writes by itself behind it.

    Returns:
        `logits` [1, tokens, vocabulary], its last 8 rows again as `logits_while_decoding` [1, 8, vocabulary], and `GENERATED`,
        ids [1, up to 8] that are written greedily.

    Raises:
        NoProbe: the graph has no logits, or wants embeddings instead of tokens.
        RunFailed: it does not load or run.
    """
    from runner.models.generation import GenerationSession, genai_config

    parts = genai_config(model.folder)["model"]
    if "encoder" in parts and "input_features" in inputs:
        return speech_outputs(model, parts, inputs, threads)
    decoder = parts["decoder"]
    if "logits" not in decoder.get("outputs", {}) or "input_ids" not in decoder.get("inputs", {}):
        raise NoProbe("the graph is one part of a model: it takes embeddings or gives no logits")
    tokens = [int(token) for token in inputs["input_ids"][0]]
    session = GenerationSession(model.folder, threads, every_position=True, on_cpu=on_cpu)
    logits, written = session.read(tokens, DECODED, DECODED)
    return {"logits": logits[None], WHILE_DECODING: logits[None, -DECODED:], GENERATED: np.array([written])}


def graph_shapes(session: onnxruntime.InferenceSession) -> dict[str, Shape]:
    """Returns the shapes of the graph's inputs; an open axis is a name or None."""
    return {one.name: tuple(one.shape) for one in session.get_inputs()}


def open_graph(model: ModelHandle, threads: int, provider: str = CPU) -> onnxruntime.InferenceSession:
    """Returns a session of an `onnx` handle on an execution provider.

    Raises:
        RunFailed: the graph does not load.
        NoProbe: the graph uses operators that only another provider has.
        TargetUnavailable: the provider cannot be used here.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    if provider != CPU:
        return open_session(model, threads, (provider,))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return inference_session(model, options, [CPU])
    except states.NotImplemented as error:
        raise NoProbe(f"the CPU provider has no kernel for it: {first_line(error)}") from error
    except Exception as error:
        if not raised_by_runtime(error):
            raise
        raise RunFailed(DOES_NOT_RUN, f"ONNX Runtime does not load {model.path}: {first_line(error)}") from error


def graph_outputs(session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]], *, every: bool = False) -> Arrays:
    """Returns what the graph gives for the inputs that it has; its key-value cache only when `every` output is asked for.

    Raises:
        NoProbe: the graph has an input for which nothing is at hand, or a kernel is missing.
        RunFailed: it stops with an error.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    feed = {one.name: _input(one, inputs) for one in session.get_inputs()}
    tensors = [one.name for one in session.get_outputs() if one.type.startswith("tensor(")]
    names = [name for name in tensors if every or not name.startswith("present")]
    try:
        results = session.run(names, feed)
    except states.NotImplemented as error:
        raise NoProbe(f"the CPU provider has no kernel for it: {first_line(error)}") from error
    except Exception as error:
        if not raised_by_runtime(error):
            raise
        raise RunFailed(DOES_NOT_RUN, f"ONNX Runtime stops: {first_line(error)}") from error
    return {name: np.asarray(result, dtype=np.float32) for name, result in zip(names, results, strict=True)}


_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def graph_types(session: onnxruntime.InferenceSession) -> dict[str, str]:
    """Returns numpy's names for the element types of the graph's inputs."""
    return {one.name: np.dtype(_numpy_type(one)).name for one in session.get_inputs()}


def _numpy_type(described: onnxruntime.NodeArg) -> Any:
    if described.type not in _NUMPY_TYPES:
        raise NoProbe(f"its input '{described.name}' is of type {described.type}")
    return _NUMPY_TYPES[described.type]


def _input(described: onnxruntime.NodeArg, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    kind = _numpy_type(described)
    if described.name in inputs:
        return inputs[described.name].astype(kind)
    if described.name == "position_ids" and "input_ids" in inputs:
        rows, length = inputs["input_ids"].shape
        return np.tile(np.arange(length, dtype=kind), (rows, 1))
    if described.name == "token_type_ids" and "input_ids" in inputs:
        return np.zeros(inputs["input_ids"].shape, dtype=kind)
    if described.name.startswith("past") and "input_ids" in inputs:
        rows = inputs["input_ids"].shape[0]
        sizes = [axis if isinstance(axis, int) else rows if at == 0 else 0 for at, axis in enumerate(described.shape)]
        return np.zeros(sizes, dtype=kind)
    raise NoProbe(f"nothing is known of its input '{described.name}'")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
