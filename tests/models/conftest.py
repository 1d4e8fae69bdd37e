"""A tiny pipeline that draws, and what it becomes in ONNX, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.each_component import apply_pass
from runner.passes.export.tiny_pipeline import TinyPipelineOptions, make_pipeline
from runner.targets.target import TARGETS


def tiny_pipeline(model: str, folder: Path) -> ModelHandle:
    """Returns a tiny pipeline of the kind of a published model, or of a local folder."""
    return make_pipeline(ModelHandle("diffusers", Path()), TinyPipelineOptions(model_id=model), _context(folder))


def converted(source: ModelHandle, folder: Path) -> ModelHandle:
    """Returns the pipeline of a source's graphs."""
    convert = table.get("OnnxConversion")
    return apply_pass(convert, source, convert.options(target_opset=17), _context(folder))


def _context(folder: Path) -> PassContext:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    return PassContext(output, scratch, TARGETS["cpu"], 1, lambda _: [], lambda _: None)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return tiny_pipeline("CompVis/stable-diffusion-v1-4", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def drawing(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return converted(source, tmp_path_factory.mktemp("converted"))
