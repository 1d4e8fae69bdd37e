"""Which points are tried: each once, the same by the same seed, and soon the good ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from runner.errors import UsageError
from runner.recipe.config import SearchStrategy
from runner.recipe.info import Gate
from runner.search.aims import Aims, Figure, Figures, Goal, Objective
from runner.search.pareto import front_of, ranked
from runner.search.sampling import next_point
from runner.search.space import Space, key_of
from runner.search.study import Trial
from tests.search.conftest import CHOICE, GRID, Load

AIMS = Aims((Objective("size", maximise=False),), (Goal("parity", Gate.parse("parity", ">= 0.9")),))


def model(point: dict[str, Any]) -> Figures:
    """What a model of the grid might weigh, and lose."""
    size, parity = 100.0, 1.0
    for name, value, smaller, worse in (
        ("quantize.per_channel", False, 20, 0.03),
        ("quantize.reduce_range", False, 5, 0.05),
        ("quantize.weight_type", "QUInt8", 10, 0.02),
        ("quantize.quant_preprocess", False, -5, 0.0),
        ("convert.target_opset", 20, 7, 0.01),
    ):
        if point.get(name) == value:
            size, parity = size - smaller, parity - worse
    return {"size": Figure(size, "bytes", False), "parity": Figure(parity, "", True)}


def tried(space: Space, strategy: SearchStrategy, samples: int, measure: Callable[..., Figures] = model) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(samples):
        point = next_point(space, trials, {key_of(trial.point) for trial in trials}, strategy, AIMS)
        if point is None:
            break
        trials.append(Trial(number, point, 0.0, measure(point)))
    return trials


@pytest.mark.parametrize("sampler", ["tpe", "random", "sequential"])
@pytest.mark.parametrize("passes", [GRID, CHOICE], ids=["grid", "choice"])
def test_every_point_is_tried_once(load: Load, sampler: str, passes: dict[str, Any]) -> None:
    space = Space.whole(load(passes).axes)
    size = space.size()
    assert size is not None
    size = min(size, 30)
    trials = tried(space, SearchStrategy.model_validate({"sampler": sampler}), size)
    assert len({key_of(trial.point) for trial in trials}) == size
    assert trials[0].point == space.complete({})


def test_the_same_seed_tries_the_same_points_and_a_stop_changes_nothing(load: Load) -> None:
    space, strategy = Space.whole(load(GRID).axes), SearchStrategy(seed=3)
    whole = tried(space, strategy, 12)
    assert tried(space, strategy, 12) == whole
    resumed = next_point(space, whole[:7], {key_of(trial.point) for trial in whole[:7]}, strategy, AIMS)
    assert resumed == whole[7].point
    assert tried(space, SearchStrategy(seed=4), 12) != whole


def test_goals_come_before_the_objective(load: Load) -> None:
    trials = tried(Space.whole(load(GRID).axes), SearchStrategy(), 16)
    best = ranked(trials, AIMS)[0]
    assert not AIMS.missed(best.figures)
    assert best.figures["size"].value == min(one.figures["size"].value for one in trials if not AIMS.missed(one.figures))
    assert best.number in front_of(trials, AIMS)


def test_a_range_without_step_is_not_walked_in_order(load: Load) -> None:
    space = Space.whole(load({"gptq": {"type": "Gptq", "damp_percent": {"min": 0.001, "max": 0.1, "log": True}}}).axes)
    assert space.size() is None
    with pytest.raises(UsageError, match="damp_percent"):
        tried(space, SearchStrategy(sampler="sequential"), 3)
    values = [trial.point["gptq.damp_percent"] for trial in tried(space, SearchStrategy(), 8)]
    assert len(set(values)) == 8
    assert all(0.001 <= value <= 0.1 for value in values)


def test_points_that_failed_are_avoided_and_not_tried_again(load: Load) -> None:
    space = Space.whole(load(GRID).axes)
    trials: list[Trial] = []
    for number in range(14):
        point = next_point(space, trials, {key_of(trial.point) for trial in trials}, SearchStrategy(), AIMS)
        assert point is not None
        fails = point["convert.target_opset"] == 18
        trials.append(Trial(number, point, 0.0, {} if fails else model(point), "refused" if fails else None))
    assert sum(not trial.done for trial in trials) < 7


def test_the_first_points_take_every_value_as_often(load: Load) -> None:
    space = Space.whole(load(GRID).axes)
    for seed in range(4):
        spread = tried(space, SearchStrategy(seed=seed), 7)[1:]
        for axis in space.axes:
            counts = Counter(key_of({"": trial.point[axis.name]}) for trial in spread)
            assert len(counts) == len(axis.values or ())
            assert max(counts.values()) - min(counts.values()) <= 1
