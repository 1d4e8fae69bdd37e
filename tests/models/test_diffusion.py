"""Pipelines that draw: found and checked, made tiny, and drawn with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli import run_command
from runner.errors import InvalidRecipe, ModelUnavailable, PackageMissing, UsageError
from runner.models import diffusion
from runner.models.diffusion import (
    COMPONENTS,
    TOKENS,
    form_of_weights,
    pipeline_files,
    require_diffusers,
    source_parts,
    variant_of,
)
from runner.models.diffusion_pipeline import DrawingPipeline, Wanted
from runner.models.diffusion_text import load_tokenizers, prompt_ids
from runner.models.diffusion_torch import load_component
from runner.models.diffusion_twin import PUBLISHED, configs_of, shrink_pipeline
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle
from runner.models.smoke_source import smoke_source
from runner.models.source import Access, Source, locate
from runner.recipe.config import InputModel


def find(tmp_path: Path, folder: Path, **facts: Any) -> Source:
    model = InputModel(type="DiffusersModel", model_path=str(folder), **facts)
    return locate(model, (), tmp_path, Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json")))


def test_a_folder_is_taken_as_it_is(tmp_path: Path, source: ModelHandle) -> None:
    found = find(tmp_path, source.folder)
    assert found.handle is not None
    assert found.handle.kind == "diffusers"
    assert found.handle.attributes["model_variant"] == "sd"
    assert find(tmp_path, source.folder, load_kwargs={"variant": None}).digest != found.digest


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "unet", "tokenizer", "model_index.json"])
def test_what_is_missing_is_told_before_any_work(tmp_path: Path, source: ModelHandle, part: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(source.folder, folder)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(ModelUnavailable, match=part.partition("/")[0]):
        find(tmp_path, folder)


def test_another_kind_of_pipeline_is_told_by_its_class(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipelin"}))
    with pytest.raises(ModelUnavailable, match="did you mean 'StableDiffusionXLPipeline'"):
        variant_of(tmp_path)
    assert variant_of(tmp_path, "sdxl") == "sdxl"


def test_weights_in_another_form_are_left_out(tmp_path: Path, source: ModelHandle) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(source.folder, folder)
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    names = [name for name, _ in pipeline_files(folder, "sd")]
    assert f"unet/{plain.name}" in names
    assert not any("fp16" in name for name in names)


def test_weights_in_another_form_alone_are_read(tmp_path: Path, source: ModelHandle) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(source.folder, folder)
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    handle = find(tmp_path, folder).handle
    assert handle is not None
    assert handle.attributes["load_kwargs"] == {"variant": "fp16"}
    assert load_component(source_parts(handle)["unet"])[1].name == "unet"
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").rename(folder / "unet" / "model.bf16.safetensors")
    with pytest.raises(ModelUnavailable, match=r"text_encoder holds no weights \(\*.safetensors\), but fp16"):
        find(tmp_path, folder)


@pytest.mark.parametrize("form", [None, "fp16"])
def test_weights_in_shards_are_found(tmp_path: Path, source: ModelHandle, form: str | None) -> None:
    folder, mark = tmp_path / "copy", f".{form}" if form else ""
    shutil.copytree(source.folder, folder)
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", f"{mark}-00001-of-00001.safetensors")))
    assert form_of_weights(folder, "sd", None) == form
    assert len([name for name, _ in pipeline_files(folder, "sd", form) if name.endswith("-of-00001.safetensors")]) == 3


def test_an_adapter_is_refused(tmp_path: Path, source: ModelHandle) -> None:
    with pytest.raises(InvalidRecipe, match="adapter-not-served"):
        find(tmp_path, source.folder, adapter_path=str(tmp_path))


@pytest.mark.parametrize("variant", COMPONENTS)
def test_a_twin_keeps_what_shapes_the_graphs(variant: str) -> None:
    published = PUBLISHED[variant]  # type: ignore[index]
    tiny = shrink_pipeline(published)
    unet = tiny["unet"]
    assert set(unet["down_block_types"]) == set(published["unet"]["down_block_types"])
    assert set(unet["up_block_types"]) == set(published["unet"]["up_block_types"])
    assert unet["cross_attention_dim"] == sum(tiny[name]["hidden_size"] for name in tiny if name.startswith("text_encoder"))
    assert len(tiny["vae"]["block_out_channels"]) == 4
    assert tiny["vae"]["scaling_factor"] == published["vae"]["scaling_factor"]


def test_a_smoke_run_of_a_folder_shrinks_that_folder(tmp_path: Path, source: ModelHandle) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(source.folder, folder)
    model = InputModel(type="DiffusersModel", model_path=str(folder))
    access = Access(tmp_path / "models", DigestMemo(tmp_path / "digests.json"))
    before = smoke_source(model, tmp_path, access)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "use_linear_projection": True}))
    assert configs_of(str(folder))[1]["unet"]["use_linear_projection"]
    assert smoke_source(model, tmp_path, access).digest != before.digest


def test_an_unknown_pipeline_asks_for_its_kind() -> None:
    with pytest.raises(InvalidRecipe, match="model_variant"):
        configs_of("someone/flux-1")


def test_prompts_are_padded_and_cut(source: ModelHandle) -> None:
    (tokenizer,) = load_tokenizers(source.folder)
    for prompt in ("", "a lighthouse", "a very long story " * 60):
        found = prompt_ids(tokenizer, prompt)
        assert found.ids.shape == (1, TOKENS)
        assert found.ids[0, 0] == tokenizer.bos_token_id
        assert found.ids[0, -1] == tokenizer.eos_token_id
        assert bool(found.left_out) == (len(prompt) > 1000)


def test_the_seed_decides_the_picture(drawing: ModelHandle) -> None:
    pipeline = DrawingPipeline(drawing, 1)
    one, again, other = (pipeline.draw(Wanted("a cat", steps=2, seed=seed)) for seed in (1, 1, 2))
    assert one.shape == (128, 128, 3)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 0.05 < one.std() < 0.5  # a picture with contrast, and neither black nor white


def test_prompt_guidance_and_negative_prompt_count(drawing: ModelHandle) -> None:
    pipeline = DrawingPipeline(drawing, 1)
    pictures = [
        pipeline.draw(wanted)
        for wanted in (
            Wanted("a cat", steps=2),
            Wanted("", steps=2),
            Wanted("a cat", steps=2, guidance=1.0),
            Wanted("a cat", "a dog", steps=2),
        )
    ]
    assert all(not np.array_equal(one, other) for at, one in enumerate(pictures) for other in pictures[:at])


@pytest.mark.parametrize(("height", "width"), [(100, 128), (128, 8), (128, 1 << 20)])
def test_a_size_that_cannot_be_drawn_is_one_error(drawing: ModelHandle, height: int, width: int) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        DrawingPipeline(drawing, 1).draw(Wanted("a cat", height=height, width=width))


def test_a_missing_package_is_one_error_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "find_spec", lambda _: None)
    with pytest.raises(PackageMissing, match="pip install"):
        require_diffusers()


def test_try_draws_into_a_file(drawing: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    folder, out = tmp_path / "model", tmp_path / "x.png"
    shutil.copytree(drawing.folder, folder)
    facts = {"kind": "onnx", "file": None, "task": "text-to-image", "attributes": drawing.attributes, "files": {}}
    (folder / "receipt.json").write_text(json.dumps(facts))

    def tried(*words: str) -> int:
        return run_command(["try", str(folder), *words, "--steps", "2"])

    assert tried("a lighthouse at dawn " * 30, "--out", str(out), "--size", "64", "128") == 0
    assert Image.open(out).size == (64, 128)
    assert "left out is" in capsys.readouterr().err
    assert tried("", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["width"] == 128
    assert tried("a cat", "--size", "1", "1") == 2
    assert "multiples of 16" in capsys.readouterr().err
    assert tried("a cat", "--scheduler", "eular") == 2
    assert "did you mean 'Euler'" in capsys.readouterr().err
    assert tried("a cat", "--out", str(tmp_path / "x.txt")) == 2
    assert "names no picture" in capsys.readouterr().err
