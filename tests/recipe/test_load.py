"""Configurations of every age load into the one current form, and everything wrong with a file is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from runner.errors import InvalidRecipe, UsageError
from runner.recipe.config import DataConfig, System
from runner.recipe.load import LoadedConfig, load_config
from runner.recipe.options import PassOptions
from runner.targets.target import target_of

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


class Paint(PassOptions):
    """Options of an imagined pass."""

    retired: ClassVar[dict[str, str]] = {"use_brush": "paint is always brushed on"}
    renamed: ClassVar[dict[str, str]] = {"thickness": "coats"}
    colour: Literal["red", "green"] = "green"
    coats: int = 1
    note: str = ""
    shades: list[str] | None = None
    data: str | DataConfig | None = None

    @model_validator(mode="after")
    def _one_coat_of_green(self) -> Paint:
        if self.colour == "green" and self.coats > 8:
            raise ValueError("coats of green are too many")
        return self


def options_of(name: str) -> tuple[tuple[str, type[PassOptions]] | None, list[str]]:
    return (("Paint", Paint) if name.lower() == "paint" else None), ["Paint"]


def load(
    tmp_path: Path, content: str | dict[str, Any], *overrides: str, fragments: tuple[dict[str, Any], ...] = ()
) -> LoadedConfig:
    files = []
    for number, part in enumerate((content, *fragments)):
        files.append(tmp_path / f"c{number}.json")
        files[-1].write_text(part if isinstance(part, str) else json.dumps(part, indent=1))
    return load_config(files, options_of, overrides)


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "input_model": {"type": "HfModel", "model_path": "Org/Model"},
        "passes": {"p": {"type": "Paint"}},
        **changes,
    }


def problems(tmp_path: Path, content: str | dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        load(tmp_path, content, *overrides)
    return [str(problem).replace(str(tmp_path), "") for problem in caught.value.problems]


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


def test_two_names_of_one_option_must_say_the_same(tmp_path: Path) -> None:
    def told(**options: Any) -> list[str]:
        return problems(tmp_path, minimal(passes={"p": {"type": "Paint", **options}}))

    cause = "Paint 'coats' and 'thickness' are two names of one option, and their values differ"
    assert told(thickness=3, coats=4) == [f"/c0.json:10: option-twice: {cause}\n    keep one of them; 'coats' is today's name"]
    assert len(told(coats=True, thickness=1)) == 1
    [problem] = told(components={"lid": {"coats": 1, "thickness": 2}})
    assert cause.replace("'coats' and 'thickness'", "'thickness' and 'coats'") in problem
    assert "/c0.json:12" in problem
    content = minimal(passes={"p": {"type": "Paint", "coats": 3}})
    [problem] = problems(tmp_path, content, "passes.p.thickness=4")
    assert "/c0.json:9: option-twice: Paint 'thickness' (set by --set passes.p.thickness=4) and 'coats' are" in problem
    for overrides in ([], ["passes.p.thickness=3"]):
        assert load(tmp_path, content, *overrides).config.passes["p"].options == Paint(coats=3)
    both = minimal(passes={"p": {"type": "Paint", "thickness": 3, "coats": 3}})
    assert load(tmp_path, both).config.passes["p"].options == Paint(coats=3)
    both["passes"]["p"]["components"] = {"lid": {"thickness": 7}}
    assert load(tmp_path, both).config.passes["p"].components == {"lid": {"coats": 7}}


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


def test_overrides_are_typed_and_keep_their_origin(tmp_path: Path) -> None:
    loaded = load(tmp_path, minimal(), "passes.p.coats=7", "output_dir=out", "engine.cache_dir=c")
    assert loaded.config.passes["p"].options.coats == 7
    assert (loaded.config.output_dir, loaded.config.cache_dir) == ("out", "c")
    leaves = {".".join(map(str, path)): node.origin.text for path, node in loaded.resolved().leaves()}
    assert leaves["passes.p.options.coats"] == "--set passes.p.coats=7"
    assert leaves["passes.p.options.colour"] == "default"
    assert leaves["input_model.model_path"].endswith("c0.json:4")


@pytest.mark.parametrize("written", ['{"type": "Paint", "coats": 7}', '{"type": "Paint", "options": {"coats": 7}}'])
def test_a_whole_step_is_set_as_files_write_it(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, minimal(), f"passes.p={written}").config.passes["p"].options.coats == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("passes.p.coats=many", "set by --set passes.p.coats=many"),
        ("passes.p.coat=1", "coats"),
        ("passes.p.type=Pain", "Paint"),
        ("input_model.model_pth=x", "model_path"),
    ],
)
def test_wrong_overrides_are_told_like_wrong_files(tmp_path: Path, override: str, words: str) -> None:
    assert words in " ".join(problems(tmp_path, minimal(), override))


@pytest.mark.parametrize(
    "override", ["nonsense", "=1", "passes.x.coats=1", "passs.p.coats=1", "input_model.type.deeper=1", "data_configs.4.name=x"]
)
def test_overrides_to_nowhere_are_usage_errors(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, minimal(data_configs=[{"name": "d"}]), override)


def test_an_unknown_pass_of_an_override_is_blamed_on_it(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, minimal(), "passes.p.type=Pain")
    assert found.startswith("unknown-pass:")
    assert "(set by --set passes.p.type=Pain)" in found


def test_what_a_model_says_of_itself_is_told_without_prefix_or_empty_name(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, minimal(passes={"p": {"type": "Paint", "coats": 9}}))
    assert found.endswith("bad-value: Paint: coats of green are too many")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search_strategy": {"search_algorithm": "tpee"}}, "'search_strategy.sampler': input should be"),
        ({"search_strategy": "maybe"}, "'search_strategy': input should be a valid boolean"),
        ({"target": {"type": "LocalSystm"}}, "'target.type': input should be"),
        ({"target": 5}, "'target': input should be a valid string, not 5"),
        ({"passes": {"p": {"type": "Paint", "data": {"type": "x"}}}}, "Paint 'data.name' is missing"),
    ],
)
def test_a_value_of_several_types_is_told_once(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (found,) = problems(tmp_path, json.dumps(minimal(**changes), indent=1))
    assert words in found
    assert found.startswith("/c0.json:")


@pytest.mark.parametrize("option", ["colour", "coats", "note", "data"])
def test_a_list_of_values_is_for_searches(tmp_path: Path, option: str) -> None:
    (found,) = problems(tmp_path, minimal(passes={"p": {"type": "Paint", option: ["red", "green"]}}))
    assert f"needs-search: Paint '{option}' has a list of values" in found
    assert "recipe search" in found
    assert load(tmp_path, minimal(passes={"p": {"type": "Paint", "shades": ["red"]}})).config


@pytest.mark.parametrize("model", ['{"type": "HfModel", "model_path": null}', '{"type": "ONNXModel"}'])
def test_a_model_without_its_path_is_told_at_its_line(tmp_path: Path, model: str) -> None:
    text = '{"passes": {"p": {"type": "Paint"}},\n"input_model": ' + model + "}"
    (found,) = problems(tmp_path, text)
    assert found.startswith("/c0.json:2: missing-key: 'input_model.model_path' is missing")


def test_a_device_and_a_provider_of_another_do_not_go_together() -> None:
    def system(**accelerator: Any) -> System:
        return System.model_validate({"accelerators": [accelerator]})

    for device, provider in (("gpu", "CPUExecutionProvider"), ("cpu", "CUDAExecutionProvider")):
        with pytest.raises(InvalidRecipe, match="do not go together"):
            target_of(system(device=device, execution_providers=[provider]))
    assert target_of(system(execution_providers=["CUDAExecutionProvider"])).name == "cuda"
    assert target_of(system(device="gpu", execution_providers=["DmlExecutionProvider"])).name == "directml"


def test_a_text_option_takes_text_that_looks_like_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, minimal(), 'passes.p.note="12"').config.passes["p"].options.note == "12"


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OpenVINOConversion", "needs openvino"),
        ("qnnpreprocess", "Qualcomm"),
        ("VocabReducer", "not served here yet"),
        ("EstimateNPULatency", "perf-estimator"),
        ("Pant", "did you mean 'Paint'"),
    ],
)
def test_passes_of_olive_are_not_taken_for_typing_errors(tmp_path: Path, name: str, words: str) -> None:
    (found,) = problems(tmp_path, minimal(passes={"p": {"type": name}}))
    assert "unknown-pass" in found
    assert words in found
