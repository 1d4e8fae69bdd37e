"""A pruned head leaves the last layer one row of a prompt, and the answers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest

from runner.models.generation import PRUNED, GenerationSession
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.passes.genai.builder_options import ModelBuilderOptions
from runner.passes.genai.last_rows import keep_last_rows
from runner.passes.genai.model_builder import PASS
from runner.targets.target import TARGETS

MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "microsoft/Phi-3-mini-4k-instruct",
    "google/gemma-2-2b-it",
    "google/gemma-3-1b-it",
    "Qwen/Qwen3-0.6B",
)


def built(model: ModelHandle, folder: Path, **options: Any) -> ModelHandle:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    context = PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return PASS.apply(model, ModelBuilderOptions.model_validate(options), context)


def logits(folder: Path, rows: int, tokens: int) -> np.ndarray[Any, Any]:
    params = og.GeneratorParams(model := og.Model(str(folder)))
    params.set_search_options(max_length=128, batch_size=rows)
    generator = og.Generator(model, params)
    generator.append_tokens(np.random.default_rng(0).integers(3, 60, (rows, tokens)).astype(np.int32))
    return np.array(generator.get_logits())


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of(request.param)
    return make_twin(twin, twin.task, tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_one_row_goes_through_the_last_layer(source: ModelHandle, precision: str, tmp_path: Path) -> None:
    whole = built(source, tmp_path / "whole", precision=precision)
    pruned = built(source, tmp_path / "pruned", precision=precision, prune_lm_head=True)
    chosen, products = set(), 0
    for node in onnx.load(pruned.path, load_external_data=False).graph.node:
        if node.name.startswith(PRUNED) or chosen.intersection(node.input):
            chosen.update(node.output)
            products += node.op_type in ("MatMul", "MatMulNBits")
    assert products >= 4  # out of attention, up, down, and the head
    for rows, tokens in ((1, 1), (1, 9), (3, 6)):
        found = logits(pruned.folder, rows, tokens)
        np.testing.assert_allclose(found, logits(whole.folder, rows, tokens)[:, -1:], atol=1e-4, rtol=1e-4)
        assert found.shape[1] == 1


def test_every_position_comes_back(source: ModelHandle, tmp_path: Path) -> None:
    whole = built(source, tmp_path / "whole", precision="fp32")
    pruned = built(source, tmp_path / "pruned", precision="fp32", prune_lm_head=True)
    prompt = list(range(3, 20))
    found = GenerationSession(pruned.folder, 1, every_position=True).all_logits(prompt)
    np.testing.assert_allclose(found, GenerationSession(whole.folder, 1).all_logits(prompt), atol=1e-4, rtol=1e-4)


def test_hidden_states_that_are_given_out_stay_whole(tmp_path: Path) -> None:
    twin = architecture_of(MODELS[0])
    source = make_twin(twin, twin.task, tmp_path / "source")
    made = built(source, tmp_path / "made", precision="fp32", prune_lm_head=True, include_hidden_states=True)
    graph = onnx.load(made.path, load_external_data=False).graph
    assert {node.name for node in graph.node if node.name.startswith(PRUNED)} == {f"{PRUNED}Gather", f"{PRUNED}Unsqueeze"}
    assert not keep_last_rows(made.path)


def test_a_head_that_is_not_pruned_is_left_alone(tmp_path: Path) -> None:
    twin = architecture_of(MODELS[0])
    made = built(make_twin(twin, twin.task, tmp_path / "source"), tmp_path / "made", precision="fp32")
    before = made.path.read_bytes()
    assert not keep_last_rows(made.path)
    assert made.path.read_bytes() == before
