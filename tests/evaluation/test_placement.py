"""Where the nodes of a model run, from profiles of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest

from runner.evaluation.placement import placement, summary
from runner.models.handle import ModelHandle

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def event(name: str, operator: str, provider: str, microseconds: int) -> dict[str, Any]:
    args = {"op_name": operator, "provider": provider, "node_index": name}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_nodes_that_fell_back_are_named_and_the_first_run_does_not_decide() -> None:
    runs = [
        *(event("a", "MatMul", CUDA, taken) for taken in (9000, 30, 30)),
        *(event("b", "Gather", CPU, taken) for taken in (10, 10, 10)),
        event("copy", "MemcpyToHost", CUDA, 5),
        {"cat": "Session", "name": "model_run", "dur": 99, "args": {}},
    ]
    found = summary(runs, CUDA)
    assert found["nodes"] == {CUDA: 1, CPU: 1}
    assert found["fell_back"] == {"Gather": 1}
    assert found["seconds"][CUDA] == pytest.approx(35e-6)
    assert list(found["operators"]) == ["MatMul", "Gather", "MemcpyToHost"]


def test_a_graph_is_profiled_where_it_runs(exported_bert: ModelHandle) -> None:
    found = placement(exported_bert, 2, CPU)
    assert found["nodes"][CPU] > 10
    assert found["fell_back"] == {}
    assert found["seconds"][CPU] > 0
