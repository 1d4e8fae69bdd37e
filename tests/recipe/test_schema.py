"""The JSON Schemas accept what the loader accepts and refuse what it refuses, as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from runner.passes.table import MODULES, get
from runner.recipe.schema import config_schema, info_schema, option_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config_validator() -> Any:
    schema = config_schema({name: get(name).options for name in MODULES})
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def info_validator() -> Any:
    schema = info_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _config(step: dict[str, Any]) -> dict[str, Any]:
    return {"input_model": {"type": "HfModel", "model_path": "a/b"}, "passes": {"step": step}}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/*/*/olive_config*.json")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_recipes_fit(config_validator: Any, path: Path) -> None:
    config_validator.validate(json.loads(path.read_text(encoding="utf-8")))


def _as_editors_read(path: Path) -> Any:
    """YAML of which a validator sees dates as text, as JSON has them."""
    return json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/*/info.yml")), ids=lambda path: path.parent.name)
def test_infos_fit(info_validator: Any, path: Path) -> None:
    info_validator.validate(_as_editors_read(path))


@pytest.mark.parametrize(
    "step",
    [
        {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32},
        {"type": "modelbuilder", "config": {"precision": "int4", "block_size": 32}},
        {"type": "MODELBUILDER", "disable_search": True},
        {"type": "OnnxConversion", "host": "local_system"},
    ],
)
def test_flat_nested_and_older_spellings_fit(config_validator: Any, step: dict[str, Any]) -> None:
    config_validator.validate(_config(step))


@pytest.mark.parametrize(
    "step",
    [
        {"type": "ModelBuildr"},
        {"type": "ModelBuilder", "precison": "int4"},
        {"type": "ModelBuilder", "precision": "int5"},
        {"type": "ModelBuilder", "config": {"precison": "int4"}},
        {"precision": "int4"},
    ],
)
def test_typing_errors_do_not_fit(config_validator: Any, step: dict[str, Any]) -> None:
    assert not config_validator.is_valid(_config(step))


def test_info_of_older_spelling_fits_and_unknown_keys_do_not(info_validator: Any) -> None:
    info = _as_editors_read(ROOT / "recipes/resnet/resnet-50/info.yml")
    variant = info["recipes"][0]
    variant["devices"], variant["eps"] = variant.pop("device"), [variant.pop("ep")]
    info_validator.validate(info)
    info["licenses"] = "MIT"
    assert not info_validator.is_valid(info)


def test_option_rows_say_type_default_and_meaning() -> None:
    rows = {name: (kind, default, meaning) for name, kind, default, meaning in option_rows(get("ModelBuilder").options)}
    assert rows["precision"] == ("fp32 | fp16 | bf16 | int8 | int4", '"fp32"', "precision of the weights")
    assert rows["block_size"][:2] == ("16 | 32 | 64 | 128 | 256", "null")
    assert rows["nodes_to_exclude"][0] == "list of text"


def test_every_option_of_every_pass_has_a_meaning() -> None:
    unexplained = [
        f"{name}.{option}" for name in MODULES for option, _, _, meaning in option_rows(get(name).options) if not meaning
    ]
    assert unexplained == []


def test_editors_are_told_of_both_schemas() -> None:
    settings = json.loads((ROOT / ".vscode" / "settings.json").read_text(encoding="utf-8"))
    schemas = [settings["json.schemas"][0]["url"], *settings["yaml.schemas"]]
    assert [(ROOT / schema).is_file() for schema in schemas] == [True, True]
