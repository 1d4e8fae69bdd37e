"""What is measured of a point, for the sake of which aims."""

from __future__ import annotations

import pytest

from runner.engine.limits import Limits
from runner.engine.request import Request
from runner.search.aims import aims_of
from runner.search.measure import way_of
from tests.search.conftest import GRID, Load


@pytest.mark.parametrize(("goal", "benched"), [("size <= 1000", False), ("parity >= 0.9", False), ("size <= 0.5x", True)])
def test_a_multiple_of_the_original_takes_a_benchmark(load: Load, goal: str, benched: bool) -> None:
    request = Request(load(GRID))
    way = way_of(aims_of(request.config, {}, [goal], ["size"], [], None), request, None, Limits())
    assert (way.benched, way.rounds) == (benched, 0)
