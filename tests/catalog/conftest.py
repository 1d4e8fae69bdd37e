"""A small catalogue of its own for tests that change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

INFO = """\
name: {name}
arch: llama
title: A title
summary: What it is.
model:
  id: organisation/{name}
  task: {task}
  parameters: 1000000
  licence: {licence}
  download_mb: 2.0
recipes:
  - name: cpu-int4
    file: olive_config.json
    device: cpu
    ep: CPUExecutionProvider
    precision: int4
    gates: {{size: "<= 0.5x"}}
  - name: cuda-fp16
    file: olive_config.cuda-fp16.json
    device: gpu
    ep: CUDAExecutionProvider
    precision: fp16
    gates: {{size: "<= 0.6x"}}
"""

CONFIG = """\
{{
  "input_model": {{"type": "HfModel", "model_path": "organisation/{name}", "task": "text-generation"}},
  "systems": {{
    "local_system": {{
      "type": "LocalSystem",
      "accelerators": [{{"device": "{device}", "execution_providers": ["{provider}"]}}]
    }}
  }},
  "passes": {{"build": {{"type": "ModelBuilder", "precision": "{precision}"}}}},
  "target": "local_system"
}}
"""

Maker = Callable[..., Path]


@pytest.fixture
def make_recipe(tmp_path: Path) -> Maker:
    """Returns a function that writes a recipe by hand (without pipeline) into `tmp_path / "recipes"` and returns its folder."""

    def make(name: str, family: str = "family", task: str = "text-generation", licence: str = "MIT") -> Path:
        folder = tmp_path / "recipes" / family / name
        folder.mkdir(parents=True)
        (folder / "info.yml").write_text(INFO.format(name=name, task=task, licence=licence), encoding="utf-8")
        for suffix, device, provider, precision in (
            ("", "cpu", "CPUExecutionProvider", "int4"),
            (".cuda-fp16", "gpu", "CUDAExecutionProvider", "fp16"),
        ):
            text = CONFIG.format(name=name, device=device, provider=provider, precision=precision)
            (folder / f"olive_config{suffix}.json").write_text(text, encoding="utf-8")
        return folder

    return make
