"""Forms of the configuration that Olive had, or reads in passing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.errors import InvalidRecipe
from runner.passes.table import options_of
from runner.recipe.load import LoadedConfig, load_config


def load(folder: Path, **content: Any) -> LoadedConfig:
    whole = {"input_model": {"type": "HfModel", "model_path": "Org/Model"}, "passes": {"c": {"type": "OnnxConversion"}}}
    path = folder / "config.json"
    path.write_text(json.dumps({**whole, **content}))
    return load_config([path], options_of)


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ({"type": "azureml_registry_model", "registry_name": "azureml", "name": "microsoft-deberta-base-mnli", "version": "15"},
         "microsoft/deberta-base-mnli"),
        ({"type": "azureml_model", "config": {"name": "my-own-model", "version": "1"}}, "my-own-model"),
        ({"type": "local_folder", "config": {"path": "models/mine"}}, "models/mine"),
    ],
)  # fmt: skip
def test_references_to_models(tmp_path: Path, reference: dict[str, Any], path: str) -> None:
    loaded = load(tmp_path, input_model={"type": "HfModel", "model_path": reference})
    assert loaded.config.input_model.model_path == path
    assert bool(loaded.notes) == ("azureml" in reference["type"])


def test_passes_as_a_list(tmp_path: Path) -> None:
    listed = [{"type": "OnnxConversion"}, {"name": "half", "type": "OnnxFloatToFloat16"}, {"type": "OnnxFloatToFloat16"}]
    assert list(load(tmp_path, passes=listed).config.passes) == ["OnnxConversion", "half", "OnnxFloatToFloat16"]


def test_the_first_of_the_pass_flows(tmp_path: Path) -> None:
    passes = {"half": {"type": "OnnxFloatToFloat16"}, "c": {"type": "OnnxConversion"}}
    loaded = load(tmp_path, passes=passes, pass_flows=[["c", "half"], ["c"]])
    assert list(loaded.config.passes) == ["c", "half"]
    assert "pass_flows" in loaded.notes[0]
    with pytest.raises(InvalidRecipe, match="pass_flows"):
        load(tmp_path, passes=passes, pass_flows=[["nothing"]])


METRIC = {"name": "speed", "type": "latency", "sub_types": [{"name": "avg"}]}


def test_metrics_at_the_top_level(tmp_path: Path) -> None:
    alone = load(tmp_path, metrics=[METRIC]).config
    assert alone.evaluators[alone.evaluator or ""].metrics[0].name == "speed"
    named = load(tmp_path, metrics={"speed": METRIC}, evaluators={"e": {"metrics": ["speed"]}}, evaluator="e").config
    assert named.evaluators["e"].metrics[0].type == "latency"
    with pytest.raises(InvalidRecipe, match=r"evaluators\.e\.metrics"):
        load(tmp_path, metrics=[METRIC], evaluators={"e": {"metrics": ["spede"]}}, evaluator="e")


def test_a_search_begins_at_its_first_point(tmp_path: Path) -> None:
    passes = {"c": [{"type": "OnnxConversion", "target_opset": [20, 21]}, {"type": "OnnxConversion"}]}
    with pytest.raises(InvalidRecipe, match="needs-search"):
        load(tmp_path, passes=passes)
    loaded = load(tmp_path, passes=passes, search_strategy={"execution_order": "joint", "sampler": "random"})
    assert loaded.config.passes["c"].options.target_opset == 20
    assert len(loaded.notes) == 2
    passes["c"][1] = {"type": "OnnxConversion", "target_opset": [20, "many"]}
    with pytest.raises(InvalidRecipe, match="target_opset"):
        load(tmp_path, passes=passes, search_strategy=True)
