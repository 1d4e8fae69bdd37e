"""GPTQ for the products of an ONNX graph: their inputs are seen while the graph runs on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable
from runner.models.files import read_graph, write_graph
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.quantize.block_quantization import Matrix, Solve
from runner.passes.quantize.gptq import gptq
from runner.passes.quantize.grid import Parts

if TYPE_CHECKING:
    import onnxruntime
    import torch

_AT_ONCE = 1_000_000_000  # bytes of Hessians held at a time


def graph_hessians(
    model: ModelHandle, name: str, batches: Iterable[Mapping[str, Any]], scratch: Path, threads: int
) -> dict[str, torch.Tensor]:
    """Returns sums of x xᵀ, float32 [columns, columns], over the inputs x of the products with a weight, by the inputs' names.

    The inputs are those of the unquantised graph; products inside branches and loops are not seen.

    Args:
        model: of kind `onnx`.
        name: of the graph in it.
        batches: inputs of the graph.
        scratch: a folder for the graph that gives its inner values.
        threads: threads to compute with.

    Raises:
        DataUnavailable: there is not one batch.
    """
    import torch

    held = list(batches)
    if not held:
        raise DataUnavailable("there is not one batch to calibrate on")
    widths = _product_inputs(model, name)
    hessians: dict[str, torch.Tensor] = {}
    for names in _portions(widths):
        session = _with_outputs(model, name, names, scratch, threads)
        inputs = [one.name for one in session.get_inputs()]
        for batch in held:
            given = {one: batch[one] for one in inputs if one in batch}
            for value, found in zip(names, session.run(names, given), strict=True):
                rows = torch.from_numpy(found).float().reshape(-1, widths[value])
                hessians[value] = hessians[value].addmm_(rows.T, rows) if value in hessians else rows.T @ rows
    return hessians


def _with_outputs(
    model: ModelHandle, name: str, values: Sequence[str], scratch: Path, threads: int
) -> onnxruntime.InferenceSession:
    """Returns a session on a graph that gives inner values out as well."""
    import onnx

    graph = read_graph(model.folder / name)
    known = {output.name for output in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values if value not in known)
    write_graph(graph, scratch / "observed.onnx")
    return open_session(replace(model, folder=scratch, file="observed.onnx", files=None), threads)


def _product_inputs(model: ModelHandle, name: str) -> dict[str, int]:
    """Returns how many columns the inputs of products with a weight have, by their names."""
    graph = read_graph(model.folder / name, weights=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
    given = {value.name for value in graph.input}
    found = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and node.input[0] not in given:
            turned = any(one.name == "transB" and one.i for one in node.attribute)
            found[node.input[0]] = weights[node.input[1]][int(turned)]
    return found


def _portions(widths: Mapping[str, int]) -> list[list[str]]:
    portions: list[list[str]] = [[]]
    taken = 0
    for name, width in widths.items():
        size = 4 * width * width
        if portions[-1] and taken + size > _AT_ONCE:
            portions.append([])
            taken = 0
        portions[-1].append(name)
        taken += size
    return [portion for portion in portions if portion]


def solve_gptq(hessians: Mapping[str, torch.Tensor], otherwise: Solve) -> Solve:
    """Returns the solution by GPTQ where a Hessian is known, and another where none is."""
    import torch

    def solve(matrix: Matrix) -> Parts:
        hessian = hessians.get(matrix.reader)
        if hessian is None:
            return otherwise(matrix)
        more = matrix.rows.shape[1] - matrix.columns
        made = gptq(matrix.rows, torch.nn.functional.pad(hessian, (0, more, 0, more)), matrix.scheme)
        return made.codes(), made.scales, made.zeros()

    return solve
