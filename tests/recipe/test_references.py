"""What a configuration refers to must be named and be there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.recipe.conftest import minimal, problems

ACCURACY = {"name": "right", "type": "accuracy", "sub_types": [{"name": "accuracy_score"}]}


@pytest.mark.parametrize("model", ['{"type": "HfModel", "model_path": null}', '{"type": "ONNXModel"}'])
def test_a_model_without_its_path_is_told_at_its_line(tmp_path: Path, model: str) -> None:
    text = '{"passes": {"p": {"type": "Paint"}},\n"input_model": ' + model + "}"
    (found,) = problems(tmp_path, text)
    assert found.startswith("/c0.json:2: missing-key: 'input_model.model_path' is missing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "there"}, "there is no system 'there'"),
        ({"evaluator": "speeed", "evaluators": {"speed": {"metrics": []}}}, "did you mean 'speed'"),
        ({"evaluators": {"e": {"metrics": [{**ACCURACY, "data_config": "texts"}]}}}, "there is no data config 'texts'"),
    ],
)
def test_a_name_that_nothing_bears_is_told_at_its_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    [found] = problems(tmp_path, minimal(**changes))
    assert re.match(r"/c0\.json:\d+: unknown-name: ", found)
    assert words in found
