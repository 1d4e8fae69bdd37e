"""Benchmarks of a tiny pipeline that draws: times of pictures and steps, and how close the pictures are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.bench.bench import Contest, bench
from runner.bench.inputs import make_inputs
from runner.bench.inputs_record import Request
from runner.bench.scenarios import STEPS
from runner.errors import DataUnavailable, RecipeError, TargetUnavailable
from runner.evaluation.drawers import open_drawer
from runner.evaluation.picture import mean_psnr, psnr
from runner.evaluation.subject import Subject
from runner.models.diffusion_pipeline import Wanted
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.each_component import apply_pass
from runner.passes.export.tiny_pipeline import TinyPipelineOptions, make_pipeline
from runner.recipe.info import Evaluation
from runner.targets.target import TARGETS


def context(folder: Path) -> PassContext:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    return PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: [], lambda _: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    options = TinyPipelineOptions(model_id="CompVis/stable-diffusion-v1-4")
    return make_pipeline(ModelHandle("diffusers", Path()), options, context(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def output(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    convert = table.get("OnnxConversion")
    options = convert.options(target_opset=17)
    return apply_pass(convert, source, options, context(tmp_path_factory.mktemp("converted")))


@pytest.fixture
def contest(source: ModelHandle, output: ModelHandle, tmp_path: Path) -> Contest:
    (tmp_path / "prompts.txt").write_text("a lighthouse at dawn\n\n  a red bicycle \n")
    return Contest(
        output=output, source=source, recipe="tiny", variant=None, model_id=None, evaluation=Evaluation(prompts="prompts.txt"),
        gates={"psnr": ">= 35", "image_time": "<= 100x"}, folder=tmp_path, target=TARGETS["cpu"], threads=1, rounds=2,
    )  # fmt: skip


def request(contest: Contest, evaluation: Evaluation, folder: Path) -> Request:
    return Request(contest.source, contest.output, evaluation, contest.folder, folder)


def test_both_sides_draw_in_turns_from_the_same_noise(contest: Contest) -> None:
    results = bench(contest)
    found = {row.name: row for row in results.rows}
    assert list(found) == ["image_time", "step_time", "psnr", "size", "load", "peak_rss"]
    assert found["image_time"].about == f"128 x 128 pixels, {STEPS} steps"
    for name in ("image_time", "step_time"):
        baseline = found[name].baseline
        assert baseline is not None
        assert len(baseline.samples) == len(found[name].optimised.samples) == 2
    assert 0 < found["step_time"].optimised.value < found["image_time"].optimised.value
    assert found["psnr"].unit == "dB"
    assert len(found["psnr"].optimised.samples) == 2
    assert {gate.metric: gate.met for gate in results.gates} == {"psnr": True, "image_time": True}


def test_prompts_come_from_the_recipe(contest: Contest, tmp_path: Path) -> None:
    found = make_inputs(request(contest, contest.evaluation, tmp_path))
    assert found.prompts == ("a lighthouse at dawn", "a red bicycle")
    assert found.notes == ()
    assert any("evaluation.prompts" in note for note in make_inputs(request(contest, Evaluation(), tmp_path)).notes)


@pytest.mark.parametrize(("content", "told"), [("\n \n", "holds no prompt"), (None, "cannot be read")])
def test_prompts_that_are_not_there_are_one_error(contest: Contest, tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "mine.txt").write_text(content)
    with pytest.raises(DataUnavailable, match=told):
        make_inputs(request(contest, Evaluation(prompts="mine.txt"), tmp_path))


def test_a_damaged_component_is_told_before_anything_is_drawn(contest: Contest, tmp_path: Path) -> None:
    graph = contest.output.folder / "unet" / "model.onnx"
    broken = tmp_path / "broken"
    for path in contest.output.folder.rglob("*"):
        if path.is_file():
            into = broken / path.relative_to(contest.output.folder)
            into.parent.mkdir(parents=True, exist_ok=True)
            into.write_bytes(b"damaged" if path == graph else path.read_bytes())
    with pytest.raises(RecipeError, match=r"unet"):
        open_drawer(replace(contest.output, folder=broken), 1)


def test_a_gpu_that_is_not_there_is_one_error(source: ModelHandle) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(TargetUnavailable, match="sees no CUDA device"):
        Subject().load(source.to_json(), 1, "CUDAExecutionProvider", True)


def test_steps_are_told_and_the_picture_is_the_one_of_the_seed(source: ModelHandle, output: ModelHandle) -> None:
    wanted, told = Wanted("a cat", "a dog", steps=2, seed=3, height=64, width=128), []
    given = open_drawer(source, 1).draw(wanted, step_done=lambda done, count: told.append((done, count)))
    assert given.shape == (64, 128, 3)
    assert told == [(at + 1, len(told)) for at in range(len(told))]
    assert len(told) >= 2
    ours = open_drawer(output, 1)
    assert psnr(given, ours.draw(wanted)) > 60
    assert psnr(given, ours.draw(replace(wanted, seed=4))) < 40


def test_the_ratio_of_pictures(tmp_path: Path) -> None:
    black, grey = np.zeros((4, 4, 3), np.float32), np.full((4, 4, 3), 0.1, np.float32)
    assert psnr(black, black) == 120
    assert psnr(black, grey) == pytest.approx(20, abs=1e-5)
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(black, grey[:2])
    for name, picture in (("black", black), ("grey", grey)):
        np.save(tmp_path / f"{name}.npy", picture)
    files = [tmp_path / "black.npy", tmp_path / "grey.npy"]
    found = mean_psnr(files, [files[0], files[0]])
    assert found.samples == pytest.approx((120, 20))
    assert found.value == pytest.approx(70)
