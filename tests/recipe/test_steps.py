"""A step is held against the options of its pass, whichever of their names it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recipe.conftest import Paint, load, minimal, problems


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


def test_an_unknown_pass_of_an_override_is_blamed_on_it(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, minimal(), "passes.p.type=Pain")
    assert found.startswith("unknown-pass:")
    assert "(set by --set passes.p.type=Pain)" in found


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


@pytest.mark.parametrize("option", ["colour", "coats", "note", "data"])
def test_a_list_of_values_is_for_searches(tmp_path: Path, option: str) -> None:
    (found,) = problems(tmp_path, minimal(passes={"p": {"type": "Paint", option: ["red", "green"]}}))
    assert f"needs-search: Paint '{option}' has a list of values" in found
    assert "recipe search" in found
    assert load(tmp_path, minimal(passes={"p": {"type": "Paint", "shades": ["red"]}})).config
