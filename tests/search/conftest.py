"""Spaces and trials for tests of the parts that run no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.passes.table import options_of
from runner.recipe.load import LoadedConfig, load_config

Load = Callable[..., LoadedConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Returns a function that loads a configuration of the given passes, for a search."""

    def loaded(passes: dict[str, Any], *space: str, **members: Any) -> LoadedConfig:
        file = tmp_path / "config.json"
        config = {"input_model": {"type": "HfModel", "model_path": "Org/Model"}, "passes": passes, **members}
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        return load_config([file], options_of, space=space)

    return loaded


GRID = {
    "convert": {"type": "OnnxConversion", "target_opset": [17, 18, 20]},
    "quantize": {
        "type": "OnnxDynamicQuantization",
        "per_channel": [True, False],
        "reduce_range": [True, False],
        "weight_type": "SEARCHABLE_VALUES",
        "quant_preprocess": [True, False],
    },
}
CHOICE = {
    "convert": {"type": "OnnxConversion"},
    "quantize": [
        {"type": "OnnxDynamicQuantization", "per_channel": [True, False]},
        {"type": "OnnxBlockWiseRtnQuantization", "block_size": [32, 64, 128]},
        None,
    ],
}
