"""Where the nodes of a model run, from profiles of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.evaluation.placement import placement, summary
from runner.models.components import component_names, parts_of
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.each_component import apply_pass
from runner.passes.export.tiny_pipeline import TinyPipelineOptions, make_pipeline
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def event(name: str, operator: str, provider: str, microseconds: int) -> dict[str, Any]:
    args = {"op_name": operator, "provider": provider, "node_index": name}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_nodes_that_fell_back_are_named_and_the_first_run_does_not_decide() -> None:
    runs = [
        *(event("a", "MatMul", CUDA, taken) for taken in (9000, 30, 30)),
        *(event("b", "Gather", CPU, taken) for taken in (10, 10, 10)),
        *(event("copy", "MemcpyToHost", CUDA, taken) for taken in (5000, 5, 5)),
        {"cat": "Session", "name": "model_run", "dur": 99, "args": {}},
    ]
    found = summary(runs, CUDA)
    assert found["nodes"] == {CUDA: 1, CPU: 1}
    assert found["fell_back"] == {"Gather": 1}
    assert found["seconds"][CUDA] == pytest.approx(35e-6)
    assert found["seconds"][CPU] == pytest.approx(10e-6)
    assert list(found["operators"]) == ["MatMul", "Gather", "MemcpyToHost"]


def test_a_node_counts_as_often_as_a_use_runs_it_and_the_first_use_warms_up() -> None:
    once = [event("encoder", "MatMul", CUDA, taken) for taken in (90_000, 100, 100)]
    often = [event("decoder", "MatMul", CPU, taken) for taken in (70_000, 60_000, 50_000, *[10] * 6)]
    found = summary([*once, *often], CUDA)
    assert found["seconds"] == {CUDA: pytest.approx(100e-6), CPU: pytest.approx(30e-6)}


def test_a_graph_is_profiled_where_it_runs(exported_bert: ModelHandle) -> None:
    found = placement(exported_bert, 2, CPU)
    assert found["nodes"][CPU] > 10
    assert found["fell_back"] == {}
    assert found["seconds"][CPU] > 0


def test_every_graph_of_a_model_that_hears_is_profiled(tmp_path: Path) -> None:
    source = make_twin(architecture_of("openai/whisper-tiny"), "automatic-speech-recognition", tmp_path / "source")
    built = _made("ModelBuilder", source, tmp_path / "built", precision="fp32")
    before = sorted(path.name for path in built.folder.iterdir())
    found = placement(built, 2, CPU)
    assert found["nodes"][CPU] > 60
    assert {"Conv", "MultiHeadAttention"} <= set(found["operators"])  # in the encoder, in the decoder
    assert found["seconds"][CPU] > 0
    assert sorted(path.name for path in built.folder.iterdir()) == before


def test_every_component_that_draws_is_profiled(tmp_path: Path) -> None:
    options = TinyPipelineOptions(model_id="CompVis/stable-diffusion-v1-4")
    source = make_pipeline(ModelHandle("diffusers", Path()), options, _context(tmp_path / "source"))
    convert = table.get("OnnxConversion")
    output = apply_pass(convert, source, convert.options(target_opset=17), _context(tmp_path / "converted"))
    whole = placement(output, 2, CPU)["nodes"][CPU]
    parts = [part for name, part in parts_of(output).items() if name != "vae_encoder"]
    assert whole == sum(placement(part, 2, CPU)["nodes"][CPU] for part in parts)


def test_every_piece_of_a_chain_is_profiled(exported_bert: ModelHandle, tmp_path: Path) -> None:
    halves = {"encoder.layer.0": 0, "encoder.layer.1": 1}
    split = _made("SplitModel", exported_bert, tmp_path, split_assignments=halves)
    assert len(component_names(split)) == 2
    found = placement(split, 2, CPU)
    assert found["nodes"][CPU] > 10
    assert found["operators"]["MatMul"] > 0


def _context(folder: Path) -> PassContext:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    return PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)


def _made(name: str, model: ModelHandle, folder: Path, **options: Any) -> ModelHandle:
    pass_ = table.get(name)
    return pass_.apply(model, pass_.options.model_validate(options), _context(folder))
