"""What a pipeline's folder is good for: diffusers' own ONNX pipelines load it, and what fine-tunes change is carried over."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import ModelUnavailable
from runner.evaluation.drawers import TorchDrawer
from runner.evaluation.picture import psnr
from runner.evaluation.torch_form import TorchForm
from runner.models.diffusion_pipeline import DrawingPipeline, Wanted
from runner.models.handle import ModelHandle
from tests.models.conftest import converted, tiny_pipeline

WANTED = Wanted("a cat", "a dog", steps=3, seed=3, height=64, width=128)


def diffusers_pipeline(name: str, folder: Path) -> Any:
    import diffusers

    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name} any more")
    pipeline = getattr(diffusers, name).from_pretrained(folder, provider="CPUExecutionProvider", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_diffusers_draws_the_same_picture_from_the_folder(drawing: ModelHandle) -> None:
    ours = DrawingPipeline.from_folder(drawing.folder, 1)
    theirs = diffusers_pipeline("OnnxStableDiffusionPipeline", drawing.folder)
    (picture,) = theirs(
        WANTED.prompt,
        negative_prompt=WANTED.negative_prompt,
        num_inference_steps=WANTED.steps,
        height=WANTED.height,
        width=WANTED.width,
        latents=ours.noise(WANTED),
        output_type="np",
    ).images
    assert psnr(picture, ours.draw(WANTED)) > 60


def test_diffusers_draws_over_a_picture_from_the_folder(drawing: ModelHandle) -> None:
    from PIL import Image

    theirs = diffusers_pipeline("OnnxStableDiffusionImg2ImgPipeline", drawing.folder)
    picture = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3)))
    drawn = [
        theirs("a cat", image=picture, strength=strength, num_inference_steps=4, generator=np.random.RandomState(0),
               output_type="np").images[0]
        for strength in (0.25, 1.0)
    ]  # fmt: skip
    assert drawn[0].shape == (64, 64, 3)
    assert not np.array_equal(*drawn)


def test_a_folder_without_a_pipeline_is_one_error(source: ModelHandle, tmp_path: Path) -> None:
    for folder in (tmp_path, source.folder):
        with pytest.raises(ModelUnavailable, match=r"has no components\.json"):
            DrawingPipeline.from_folder(folder)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """An XL whose UNet is told the guidance, and whose autoencoder says mean and deviation of its latents."""
    plain = tiny_pipeline("stabilityai/stable-diffusion-xl-base-1.0", tmp_path_factory.mktemp("plain")).folder
    changed = tmp_path_factory.mktemp("changed") / "pipeline"
    shutil.copytree(plain, changed)
    told: dict[str, dict[str, Any]] = {
        "unet/config.json": {"time_cond_proj_dim": 32},
        "vae/config.json": {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]},
        "scheduler/scheduler_config.json": {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    }
    for name, facts in told.items():
        path = changed / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    return tiny_pipeline(str(changed), tmp_path_factory.mktemp("distilled"))


def test_a_distilled_pipeline_draws_as_in_pytorch(distilled: ModelHandle, tmp_path: Path) -> None:
    drawing = converted(distilled, tmp_path)
    ours, theirs = DrawingPipeline.from_folder(drawing.folder), TorchDrawer(distilled, 1)
    strong, weak = replace(WANTED, guidance=8.0), replace(WANTED, guidance=1.0)
    assert psnr(ours.draw(strong), theirs.draw(strong)) > 60
    assert psnr(ours.draw(weak), theirs.draw(weak)) > 60
    assert psnr(ours.draw(strong), ours.draw(weak)) < 60


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("wanted", [WANTED, replace(WANTED, height=None, width=None)], ids=["asked", "its own size"])
def test_pytorch_starts_from_the_same_noise_in_every_precision(source: ModelHandle, precision: str, wanted: Wanted) -> None:
    exact, rough = (TorchDrawer(source, 1, form=TorchForm(one)) for one in ("fp32", precision))
    assert psnr(exact.draw(wanted), rough.draw(wanted)) > 30
