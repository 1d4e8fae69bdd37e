"""What is wrong with a value is told once, in words of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Place, Problem
from runner.recipe.document import DEFAULT, node_of
from runner.recipe.validate import check_members
from tests.recipe.conftest import Paint, minimal, problems


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


def test_members_are_checked_without_what_the_whole_says_of_itself() -> None:
    place = Place("a.json")

    def told(**options: Any) -> list[str]:
        found: list[Problem] = []
        check_members(Paint, node_of(options, DEFAULT), found, place, "Paint ")
        return [problem.cause for problem in found]

    assert told(coats=9) == []
    assert told(colour="blue", coats=9) == ["Paint 'colour': input should be 'red' or 'green', not \"blue\""]
