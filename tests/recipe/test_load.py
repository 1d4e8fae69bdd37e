"""Configurations of every age load into the one current form, and everything wrong with a file is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import InvalidRecipe
from runner.recipe.config import System
from runner.targets.target import target_of
from tests.recipe.conftest import Paint, load, minimal, problems

OLD = """{
  // written for an older release
  "input_model": {
    "type": "pytorchmodel",
    "config": {"hf_config": {"model_name": "Org/Model", "task": "text-generation", "trust_remote_code": true}}
  },
  "systems": {"here": {"type": "localsystem", "config": {
    "accelerators": [{"device": "CPU", "execution_providers": ["cpuexecutionprovider"]}]
  }}},
  "evaluators": {"e": {"metrics": [{"name": "latency", "type": "latency", "sub_types": ["avg"]}]}},
  "passes": {
    "convert": {"type": "PAINT", "disable_search": true, "config": {"colour": "red", "use_brush": true, "thickness": 3}}
  },
  "engine": {
    "search_strategy": {"execution_order": "joint", "search_algorithm": "tpe", "search_algorithm_config": {"seed": 1}},
    "evaluator": "e", "host": "here", "target": "here", "cache_dir": "cache", "output_dir": "out", "clean_cache": true,
    "packaging_config": {"type": "Zipfile"}
  }
}"""


def test_the_old_nested_form_becomes_the_current_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, OLD)
    config = loaded.config
    assert config.input_model.type == "HfModel"
    assert config.input_model.model_path == "Org/Model"
    assert config.input_model.load_kwargs == {"trust_remote_code": True}
    assert config.passes["convert"].options == Paint(colour="red", coats=3)
    assert config.search_strategy is not None
    assert not isinstance(config.search_strategy, bool)
    assert (config.search_strategy.sampler, config.search_strategy.seed) == ("tpe", 1)
    assert config.systems["here"].accelerators[0].execution_providers == ["CPUExecutionProvider"]
    assert (config.evaluator, config.output_dir, config.cache_dir) == ("e", "out", "cache")
    told = " ".join(loaded.notes)
    for retired in ("disable_search", "use_brush", "clean_cache", "packaging_config"):
        assert f"'{retired}' does nothing here" in told


@pytest.mark.parametrize(
    "spelling",
    [
        {"device": "cpu", "execution_providers": "CPU"},
        {"devices": ["cpu"], "eps": ["CPUExecutionProvider"]},
        {"device": "cpu", "ep": "CPUExecutionProvider"},
    ],
)
def test_spellings_of_an_accelerator(tmp_path: Path, spelling: dict[str, Any]) -> None:
    loaded = load(tmp_path, minimal(systems={"s": {"type": "LocalSystem", "accelerators": [spelling]}}))
    accelerator = loaded.config.systems["s"].accelerators[0]
    assert (accelerator.device, accelerator.execution_providers) == ("cpu", ["CPUExecutionProvider"])


def test_all_problems_of_a_file_are_told_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = """{
"input_model": {"type": "HfModle", "model_path": "Org/Model"},
"outptu_dir": "x",
"passes": {
  "a": {"type": "Piant"},
  "b": {"type": "Paint",
     "color": "red"},
  "c": {"type": "Paint", "config": {
     "colour": "blue",
     "coats": "many"}}
},
"target": "nowhere"
}"""
    found = problems(tmp_path, text)
    expected = [
        ("/c0.json:2", "HfModle", "HfModel"),
        ("/c0.json:3", "outptu_dir", "output_dir"),
        ("/c0.json:5", "Piant", "Paint"),
        ("/c0.json:7", "color", "colour"),
        ("/c0.json:9", "colour", "blue"),
        ("/c0.json:10", "coats", "many"),
        ("/c0.json:12", "nowhere", "system"),
    ]
    assert len(found) == len(expected)
    for text_found, (place, *words) in zip(found, expected, strict=True):
        assert text_found.startswith(place + ":")
        assert all(word in text_found for word in words)


def test_engine_leftovers_are_errors_at_their_line(tmp_path: Path) -> None:
    found = problems(tmp_path, json.dumps(minimal(engine={"evalutor": "e"}), indent=1))
    assert len(found) == 1
    assert "evalutor" in found[0]
    assert "evaluator" in found[0]


def test_fragments_replace_whole_sections(tmp_path: Path) -> None:
    base = minimal(systems={"a": {"type": "LocalSystem"}, "b": {"type": "LocalSystem"}})
    loaded = load(
        tmp_path,
        base,
        fragments=({"systems": {"c": {"type": "LocalSystem"}}}, {"passes": {"q": {"type": "Paint", "coats": 2}}}),
    )
    assert list(loaded.config.systems) == ["c"]
    assert list(loaded.config.passes) == ["q"]
    assert loaded.config.system(None) is loaded.config.systems["c"]


def test_a_problem_of_a_fragment_points_at_the_fragment(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        load(tmp_path, minimal(), fragments=({"passes": {"q": {"type": "Paint", "coat": 2}}},))
    place = caught.value.problems[0].place
    assert place is not None
    assert place.file.endswith("c1.json")


def test_a_device_and_a_provider_of_another_do_not_go_together() -> None:
    def system(**accelerator: Any) -> System:
        return System.model_validate({"accelerators": [accelerator]})

    for device, provider in (("gpu", "CPUExecutionProvider"), ("cpu", "CUDAExecutionProvider")):
        with pytest.raises(InvalidRecipe, match="do not go together"):
            target_of(system(device=device, execution_providers=[provider]))
    assert target_of(system(execution_providers=["CUDAExecutionProvider"])).name == "cuda"
    assert target_of(system(device="gpu", execution_providers=["DmlExecutionProvider"])).name == "directml"


@pytest.mark.parametrize(
    "content",
    ["[]", "3", '"x"', "null", "{}", '{"passes": []}', '{"passes": {"a": 3}}', '{"input_model": 4, "passes": {"p": {}}}'],
)
def test_documents_of_another_shape_are_refused(tmp_path: Path, content: str) -> None:
    assert problems(tmp_path, content)


keys = st.sampled_from(["config", "type", "hf_config", "name", "accelerators", "metrics", "x"])


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


sections = st.sampled_from(
    ["input_model", "systems", "passes", "engine", "evaluators", "evaluator", "data_configs", "search_strategy", "host"]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.dictionaries(sections, json_like, max_size=5))
def test_whatever_stands_in_a_file_gives_a_config_or_problems(tmp_path: Path, content: dict[str, Any]) -> None:
    try:
        load(tmp_path, {**minimal(), **content})
    except InvalidRecipe as error:
        assert error.problems
        assert all(problem.place for problem in error.problems)
