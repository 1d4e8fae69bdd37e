"""What varies in a configuration, and the points that it has."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import InvalidRecipe, UsageError
from runner.passes.table import options_of
from runner.recipe.choices import Range
from runner.recipe.load import load_point
from runner.search.space import Space, key_of
from tests.search.conftest import CHOICE, Load


def points(load: Load, passes: dict[str, Any], *space: str) -> list[dict[str, Any]]:
    return list(Space.whole(load(passes, *space).axes).points())


def test_lists_ranges_and_legal_values(load: Load) -> None:
    step = {
        "type": "ModelBuilder",
        "precision": "int4",
        "accuracy_level": "SEARCHABLE_VALUES",
        "block_size": [16, 32],
        "num_hidden_layers": {"min": 2, "max": 6, "step": 2},
        "nodes_to_exclude": {"choices": [["/a"], ["/b", "/c"]]},
        "extra_options": {"prune_lm_head": [True, False]},
    }
    loaded = load({"build": step})
    values = {axis.name: axis.values for axis in loaded.axes}
    assert values == {
        "build.accuracy_level": (0, 1, 2, 3, 4),
        "build.block_size": (16, 32),
        "build.num_hidden_layers": (2, 4, 6),
        "build.nodes_to_exclude": (["/a"], ["/b", "/c"]),
        "build.extra_options.prune_lm_head": (True, False),
    }
    space = Space.whole(loaded.axes)
    assert space.size() == len(list(space.points())) == 120
    assert loaded.config.passes["build"].options.block_size == 16
    point = load_point(loaded, {"build.block_size": 32, "build.extra_options.prune_lm_head": False}, options_of)
    options = point.config.passes["build"].options
    assert (options.block_size, options.extra_options.prune_lm_head, options.nodes_to_exclude) == (32, False, ["/a"])
    assert not point.varies


def test_options_act_only_with_their_pass(load: Load) -> None:
    found = points(load, CHOICE)
    assert len(found) == 6
    assert {key_of(point) for point in found if point["quantize"] == "left out"} == {key_of({"quantize": "left out"})}
    loaded = load(CHOICE)
    chosen = load_point(loaded, {"quantize": "OnnxBlockWiseRtnQuantization"}, options_of).config.passes
    assert chosen["quantize"].options.block_size == 32
    assert list(load_point(loaded, {"quantize": "left out"}, options_of).config.passes) == ["convert"]


def test_axes_by_hand(load: Load) -> None:
    plain = {"build": {"type": "ModelBuilder", "precision": "int4"}}
    assert len(points(load, plain, "passes.build.block_size=16,32", "passes.build.precision=int4,int8")) == 4
    with pytest.raises(InvalidRecipe, match=r"block_size.*17.*--space"):
        load(plain, "passes.build.block_size=16,17")
    with pytest.raises(UsageError, match=r"--space passes\.bild\.block_size=16: there is no step 'bild'"):
        load(plain, "passes.bild.block_size=16")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("damp_percent", {"min": 0.5, "max": 0.1}, "min 0.5 is above max 0.1"),
        ("damp_percent", {"min": 0, "max": 0.1, "log": True}, "log goes with a min above 0"),
        ("damp_percent", {"min": "a", "max": 0.1}, "are numbers"),
        ("damp_percent", [], "empty list"),
        ("damp_percent", "SEARCHABLE_VALUES", "no list of legal values"),
        ("desc_act", {"min": 0, "max": 1}, "desc_act"),
        ("damp_percent", [0.01, "much"], "much"),
    ],
)
def test_what_cannot_be_searched_is_told_at_its_line(load: Load, option: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRecipe) as raised:
        load({"gptq": {"type": "Gptq", option: value}})
    (problem,) = raised.value.problems
    assert words in problem.cause
    assert problem.place is not None
    assert problem.place.line is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(-1e3, 1e3), st.floats(0, 100), st.one_of(st.none(), st.floats(0.01, 10)), st.booleans())
def test_a_range_holds_its_numbers(low: float, width: float, step: float | None, whole: bool) -> None:
    if whole:
        low, width, step = int(low), int(width), None if step is None else max(1, int(step))
    numbers = Range(low, low + width, step, log=False, whole=whole).numbers()
    if step is None and not whole:
        assert numbers is None
    elif numbers is not None:
        assert len(set(numbers)) == len(numbers)
        assert all(low - 1e-6 <= one <= low + width + 1e-6 for one in numbers)
        assert numbers[0] == pytest.approx(low, abs=1e-9)
        assert not whole or all(isinstance(one, int) for one in numbers)


def test_one_step_varies_on_the_best_of_the_others(load: Load) -> None:
    space = Space.whole(load({**CHOICE, "convert": {"type": "OnnxConversion", "target_opset": [17, 18]}}).axes)
    assert space.steps == ("convert", "quantize")
    stage = space.of_step("quantize", {"convert.target_opset": 18})
    assert stage.size() == 6
    assert {point["convert.target_opset"] for point in stage.points()} == {18}
    assert stage.holds({"convert.target_opset": 18, "quantize": "left out"})
    assert not stage.holds({"convert.target_opset": 17, "quantize": "left out"})


def test_without_options_only_passes_are_chosen(load: Load) -> None:
    space = Space.whole(load(CHOICE).axes, options=False)
    assert [point["quantize"] for point in space.points()] == [
        "OnnxDynamicQuantization", "OnnxBlockWiseRtnQuantization", "left out",
    ]  # fmt: skip
