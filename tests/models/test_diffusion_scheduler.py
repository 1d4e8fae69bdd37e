"""Schedulers of pipelines that draw: the picture is the one of diffusers' own pipeline, whichever of them sets the steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.errors import ModelUnavailable, PackageMissing, UsageError
from runner.evaluation.drawers import TorchDrawer
from runner.evaluation.picture import psnr
from runner.models.diffusion_pipeline import DrawingPipeline, Wanted
from runner.models.diffusion_scheduler import load_scheduler, other_scheduler
from runner.models.handle import ModelHandle

WANTED = Wanted("a lighthouse at dawn", steps=3, seed=4, height=64, width=64)


def with_scheduler(model: ModelHandle, folder: Path, **facts: object) -> ModelHandle:
    """Returns a copy of a pipeline whose scheduler's configuration says these facts as well."""
    shutil.copytree(model.folder, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", json.loads(path.read_text())["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return replace(model, folder=folder)


@pytest.mark.parametrize("name", ["DDIMScheduler", "euler ancestral", "heun-discrete", "LCM", "KDPM2Ancestral", "TCD"])
def test_another_scheduler_draws_the_picture_of_diffusers(drawing: ModelHandle, source: ModelHandle, name: str) -> None:
    wanted, ours = replace(WANTED, scheduler=name), DrawingPipeline(drawing, 1)
    drawn = ours.draw(wanted)
    assert psnr(drawn, TorchDrawer(source, 1).draw(wanted)) > 60
    assert np.array_equal(drawn, ours.draw(wanted))
    assert psnr(drawn, ours.draw(WANTED)) < 60


@pytest.mark.parametrize(
    "facts",
    [
        {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True},
        {"_class_name": "DDPMScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction"},
    ],
)
def test_the_scheduler_of_the_folder_is_read_as_diffusers_reads_it(
    drawing: ModelHandle, source: ModelHandle, tmp_path: Path, facts: dict[str, object]
) -> None:
    ours, theirs = (with_scheduler(one, tmp_path / one.kind, **facts) for one in (drawing, source))
    assert psnr(DrawingPipeline(ours, 1).draw(WANTED), TorchDrawer(theirs, 1).draw(WANTED)) > 60


def test_a_name_that_is_none_gets_the_nearest(source: ModelHandle) -> None:
    with pytest.raises(UsageError, match="did you mean 'EulerAncestral'"):
        load_scheduler(source.folder, "sd", "EulerAncestrel")
    with pytest.raises(UsageError, match="PNDM"):
        load_scheduler(source.folder, "sd", "flux")


def test_a_scheduler_of_another_kind_of_model_is_told(source: ModelHandle, tmp_path: Path) -> None:
    for named in ("FlowMatchEulerDiscreteScheduler", "NoneOfThem"):
        other = with_scheduler(source, tmp_path / named, _class_name=named)
        with pytest.raises(ModelUnavailable, match=named):
            load_scheduler(other.folder, "sd")


def test_steps_that_a_scheduler_does_not_go_in_are_one_error(drawing: ModelHandle) -> None:
    with pytest.raises(UsageError, match="LCMScheduler does not draw in 400 steps"):
        DrawingPipeline(drawing, 1).draw(replace(WANTED, scheduler="lcm", steps=400))


def test_a_scheduler_that_needs_another_package_says_which(source: ModelHandle) -> None:
    from diffusers.utils import is_torchsde_available

    if is_torchsde_available():
        pytest.skip("it is installed")
    with pytest.raises(PackageMissing, match="torchsde"):
        other_scheduler(load_scheduler(source.folder, "sd"), "DPMSolverSDE")
