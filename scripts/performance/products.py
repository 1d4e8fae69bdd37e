"""The products of a language model's layers with weights, alone: in 4 bits by ONNX Runtime's kernel, and in fp32 by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from performance.subject import CLOCKS
from runner.models.files import read_graph
from runner.models.generation import genai_config

if TYPE_CHECKING:
    import onnx

_OPERATOR, _DOMAIN = "MatMulNBits", "com.microsoft"


def products_alone(
    folder: Path, tokens: int, threads: int, rounds: int, clock: str, options: dict[str, str]
) -> dict[str, list[float]]:
    """Returns the milliseconds that all products of the layers take for some tokens, the head left out, by side and round.

    Sides are `quantised`, `quantised, set` (with the session options given) and `fp32`.
    """
    graph = read_graph(folder / genai_config(folder)["model"]["decoder"]["filename"])
    nodes = [node for node in graph.graph.node if node.op_type == _OPERATOR and not node.name.startswith("/lm_head")]
    inputs = {
        f"wide_{width}": np.random.default_rng(width).standard_normal((tokens, width), dtype=np.float32)
        for width in {_attribute(node, "K") for node in nodes}
    }
    model = _products(graph, nodes)
    calls = {
        "quantised": _session(model, threads, {}, inputs),
        "quantised, set": _session(model, threads, options, inputs),
        "fp32": _linear([(_attribute(node, "K"), _attribute(node, "N")) for node in nodes], threads, inputs),
    }
    now = CLOCKS[clock]
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = now()
            call()
            if number:  # the first turn warms up
                found[name].append(1000 * (now() - started))
    return found


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next(one.i for one in node.attribute if one.name == name)


def _products(graph: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> bytes:
    """Returns a model of the products alone, each with an input of its width; what it puts out is one number each."""
    from onnx import TensorProto, helper

    made, outputs = [], []
    for node in nodes:
        name = f"sum_{len(outputs)}"
        given = [f"wide_{_attribute(node, 'K')}", *node.input[1:]]
        product = helper.make_node(_OPERATOR, given, [f"{name}_of"], domain=_DOMAIN)
        product.attribute.extend(node.attribute)
        made += [product, helper.make_node("ReduceMax", [f"{name}_of"], [name], keepdims=0)]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    used = {name for node in nodes for name in node.input[1:]}
    widths = sorted({_attribute(node, "K") for node in nodes})
    inputs = [helper.make_tensor_value_info(f"wide_{width}", TensorProto.FLOAT, ["tokens", width]) for width in widths]
    weights = [one for one in graph.graph.initializer if one.name in used]
    return helper.make_model(
        helper.make_graph(made, "products", inputs, outputs, weights),
        opset_imports=graph.opset_import, ir_version=graph.ir_version,
    ).SerializeToString()  # fmt: skip


def _session(model: bytes, threads: int, options: dict[str, str], inputs: dict[str, Any]) -> Callable[[], object]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _linear(shapes: list[tuple[int, int]], threads: int, inputs: dict[str, Any]) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    weights = [torch.full((outputs, width), 0.5) for width, outputs in shapes]
    rows = {name: torch.from_numpy(one) for name, one in inputs.items()}

    def call() -> None:
        with torch.inference_mode():
            for weight, (width, _) in zip(weights, shapes, strict=True):
                torch.nn.functional.linear(rows[f"wide_{width}"], weight).max()

    return call
