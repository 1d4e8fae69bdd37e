"""What people write under `surgeries`: errors with their places, names in any case, schema, docs."""

import json
from pathlib import Path

import jsonschema
import pytest

from runner.errors import InvalidRecipe
from runner.passes.graph.surgeons.table import SURGEONS
from runner.passes.graph.surgeries import GraphSurgeriesOptions
from runner.passes.table import options_of
from runner.recipe.load import load_config
from runner.recipe.schema import case_rows, config_schema, option_rows

BROKEN = """{
  "input_model": {"type": "HfModel", "model_path": "a/b"},
  "passes": {"s": {"type": "graphsurgeries", "surgeries": [
    {"surgeon": "tiewordembeddings"},
    {"surgeon": "TieWordEmbeding"},
    {"surgeon": "RenameInputDims", "dim_idx": 0,
     "dim_nam": "x", "input_name": "a"},
    {"surgeon": "RenameInputDims", "dim_idx": "a", "dim_name": "x", "input_name": "a"},
    {"surgeon": "non4dslice"},
    {"old_names": []},
    "RemoveMemcpy",
    {"surgeon": "RenameInputDims", "dim_idx": 0, "dim_name": "x"},
    {"surgeon": "RenameInputs", "old_names": ["a"], "new_names": ["b", "c"]}
  ]}}
}"""


def config(folder: Path, text: str) -> Path:
    path = folder / "c.json"
    path.write_text(text)
    return path


def test_every_problem_at_its_line(tmp_path: Path):
    with pytest.raises(InvalidRecipe) as caught:
        load_config([config(tmp_path, BROKEN)], options_of)
    told = [(one.place.line if one.place else None, one.rule, one.cause, one.remedy) for one in caught.value.problems]
    assert [(line, rule) for line, rule, _, _ in told] == [
        (5, "bad-value"), (6, "missing-key"), (7, "unknown-option"), (8, "bad-value"), (9, "bad-value"), (10, "missing-key"),
        (11, "bad-value"), (12, "bad-value"), (13, "bad-value"),
    ]  # fmt: skip
    assert told[0][2:] == (
        "GraphSurgeries 'surgeries[1].surgeon': there is no surgeon 'TieWordEmbeding'",
        "did you mean 'TieWordEmbeddings'?",
    )
    assert told[2][2:] == ("GraphSurgeries RenameInputDims has no 'dim_nam'", "did you mean 'dim_name'?")
    assert "the surgeon Non4DSlice of Olive's is not served" in told[4][2]
    assert "input_name or input_idx is missing" in told[7][2]
    assert "1 old_names do not go with 2 new_names" in told[8][2]


def test_names_in_any_case(tmp_path: Path):
    text = json.dumps(
        {
            "input_model": {"type": "HfModel", "model_path": "a/b"},
            "passes": {"s": {"type": "GraphSurgeries", "surgeries": [{"surgeon": "removeMEMCPY"}, {"surgeon": "RemoveQDQ"}]}},
        }
    )
    loaded = load_config([config(tmp_path, text)], options_of)
    options = loaded.config.passes["s"].options
    assert [one.surgeon for one in options.surgeries] == ["RemoveMemcpy", "RemoveQDQ"]
    assert GraphSurgeriesOptions.model_validate(options.model_dump(mode="json")) == options
    resolved = loaded.resolved().plain()["passes"]["s"]["options"]["surgeries"]
    assert resolved[1] == {"surgeon": "RemoveQDQ", "keep_clip_after_inputs": False}
    schema = jsonschema.Draft202012Validator(config_schema({"GraphSurgeries": GraphSurgeriesOptions}))
    assert schema.is_valid(json.loads(text))
    for wrong in ("RemoveMemcpy2", "Non4DSlice"):
        assert not schema.is_valid(json.loads(text.replace("removeMEMCPY", wrong)))
    assert not schema.is_valid(json.loads(text.replace('"removeMEMCPY"', '"RemoveMemcpy", "colour": 1')))


def test_every_surgeon_is_described():
    cases = {name: (meaning, rows) for name, meaning, rows in case_rows(GraphSurgeriesOptions)}
    assert tuple(cases) == SURGEONS
    assert all(meaning and all(text for *_, text in rows) for meaning, rows in cases.values())
    assert [row[:3] for row in cases["RenameOutputDims"][1]] == [
        ("output_idx", "int", "required"),
        ("dim_idx", "int", "required"),
        ("dim_name", "text", "required"),
    ]
    assert ("surgeries", "list of mapping with surgeon", "required") in [row[:3] for row in option_rows(GraphSurgeriesOptions)]
