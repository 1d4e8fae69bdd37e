"""JSON Schemas of olive_config.json and info.yml, and pass options as rows of a table: all derived from the typed models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from runner.recipe.config import Evaluator, PassConfig, RunConfig
from runner.recipe.info import Info
from runner.recipe.migrate import RETIRED_PASS_LEVEL, RETIRED_TOP_LEVEL
from runner.recipe.options import PassOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/{model}"


class _Described(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes of field names: they say nothing new."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def info_schema() -> dict[str, Any]:
    """Returns the JSON Schema of info.yml; `devices` and `eps` of olive-recipes are accepted as well."""
    schema = Info.model_json_schema(ref_template=_REFERENCE, schema_generator=_Described)
    variant = schema["$defs"]["Variant"]
    for old, new in (("devices", "device"), ("eps", "ep")):
        variant["properties"][old] = {"description": f"older spelling of {new}", "deprecated": True}
        variant["required"].remove(new)
    variant["allOf"] = [{"anyOf": [{"required": ["device"]}, {"required": ["devices"]}]},
                        {"anyOf": [{"required": ["ep"]}, {"required": ["eps"]}]}]  # fmt: skip
    return {"$schema": DIALECT, "title": "info.yml", **_without_title(schema)}


def config_schema(passes: Mapping[str, type[PassOptions]]) -> dict[str, Any]:
    """Returns the JSON Schema of olive_config.json with the options of every pass, flat or under `config`.

    It describes today's form. Older forms, which the loader accepts as well, are read where an editor cannot follow
    (`hf_config`, `engine`), and so those sections are left open.

    Args:
        passes: the option model of each pass by its name.
    """
    schema = RunConfig.model_json_schema(ref_template=_REFERENCE, schema_generator=_Described)
    definitions = schema.setdefault("$defs", {})
    definitions.pop(PassConfig.__name__, None)
    definitions[Evaluator.__name__].setdefault("additionalProperties", True)
    variants = []
    for name, options in sorted(passes.items()):
        definitions[f"{name}.flat"], definitions[f"{name}.nested"] = _pass_forms(name, options, definitions)
        variants += [{"$ref": f"#/$defs/{name}.flat"}, {"$ref": f"#/$defs/{name}.nested"}]
    definitions["Pass"] = {"oneOf": variants, "type": "object", "required": ["type"], "properties": {"type": _any_case(passes)}}
    properties = schema["properties"]
    properties["passes"] = {
        "type": "object",
        "description": "the steps, in order",
        "additionalProperties": {"$ref": "#/$defs/Pass"},
    }
    properties["$schema"] = {"type": "string"}
    properties["engine"] = {
        "type": "object",
        "description": "older form: these keys stand at the top level today",
        "deprecated": True,
    }
    for name, why in RETIRED_TOP_LEVEL.items():
        properties[name] = {"description": f"does nothing here: {why}", "deprecated": True}
    for model in ("InputModel", "System"):
        definitions[model]["properties"]["config"] = {"type": "object", "deprecated": True, "description": "older nested form"}
    for model in ("InputModel", "Accelerator"):
        definitions[model]["additionalProperties"] = True
    definitions["InputModel"]["properties"]["type"] = {
        "type": "string",
        "description": "HfModel, PyTorchModel, ONNXModel or DiffusersModel",
    }
    return {"$schema": DIALECT, "title": "olive_config.json", **_without_title(schema)}


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}


def _any_case(names: Iterable[str]) -> dict[str, Any]:
    """A name in any case: the right spellings for completion, and a pattern that takes the others."""
    return {
        "anyOf": [{"enum": sorted(names)}, {"type": "string", "pattern": "|".join(_pattern(name) for name in sorted(names))}]
    }


def _pattern(name: str) -> str:
    letters = "".join(f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else letter for letter in name)
    return f"^{letters}$"


def _pass_forms(name: str, options: type[PassOptions], definitions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of a step: options beside `type`, and options under `config`."""
    own = options.model_json_schema(ref_template=_REFERENCE, schema_generator=_Described)
    definitions.update(_names_in_any_case(own, own.pop("$defs", {})))
    fields: dict[str, Any] = {**own.get("properties", {}), **_respelt(options, own.get("properties", {}))}
    for old, new in options.renamed.items():
        fields[old] = {**fields.get(new, {}), "description": f"Olive's name of {new}"}
    for old, why in {**options.retired, **RETIRED_PASS_LEVEL}.items():
        fields.setdefault(old, {"description": f"does nothing here: {why}", "deprecated": True})
    definitions[f"{name}.options"] = {"type": "object", "additionalProperties": False, "properties": fields}
    held = {"$ref": f"#/$defs/{name}.options"}
    level: dict[str, Any] = {
        "type": _any_case([name]),
        "host": {"type": ["string", "null"], "description": "system that runs this step"},
        "evaluator": {"type": ["string", "null"], "description": "evaluator of this step's result"},
        "components": {
            "description": PassConfig.model_fields["components"].description,
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": {"anyOf": [{"const": False}, held]}},
            ],
        },
    }
    flat = {"type": "object", "additionalProperties": False, "required": ["type"], "properties": {**level, **fields}}
    nested = {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "config"],
        "properties": {**level, **{key: fields[key] for key in RETIRED_PASS_LEVEL}, "config": held},
    }
    return flat, nested


def _names_in_any_case(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns the definitions with the names that tell cases apart accepted as the loader reads them."""
    for field in schema.get("properties", {}).values():
        told_by = field.get("items", {}).pop("discriminator", {})
        for name, reference in told_by.get("mapping", {}).items():
            definitions[reference.rpartition("/")[2]]["properties"][told_by["propertyName"]] = _any_case([name])
    return definitions


def _respelt(options: type[PassOptions], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a validator spells right before they are checked: any text, with the right spellings to complete from."""
    decorators = options.__pydantic_decorators__.field_validators.values()
    names = {name for decorator in decorators if decorator.info.mode == "before" for name in decorator.info.fields}
    return {name: {"anyOf": [fields[name], {"type": "string"}], **_about(fields[name])} for name in names & fields.keys()}


def _about(field: Mapping[str, Any]) -> dict[str, Any]:
    return {key: field[key] for key in ("description", "default") if key in field}


def case_rows(options: type[PassOptions]) -> list[tuple[str, str, list[tuple[str, str, str, str]]]]:
    """Returns (name, what it does, rows as of `option_rows`) of every case of an option whose items are told apart by name.

    Those are the surgeons of GraphSurgeries.
    """
    schema = options.model_json_schema(schema_generator=_Described)
    found = []
    for field in schema.get("properties", {}).values():
        told_by = field.get("items", {}).get("discriminator", {})
        for name, reference in sorted(told_by.get("mapping", {}).items()):
            case = schema["$defs"][reference.rpartition("/")[2]]
            rows = [row for row in _rows(case) if row[0] != told_by["propertyName"]]
            found.append((name, " ".join(case.get("description", "").split()), rows))
    return found


def option_rows(options: type[PassOptions]) -> list[tuple[str, str, str, str]]:
    """Returns (name, type, default, meaning) of every option, in the order of declaration."""
    return _rows(options.model_json_schema(schema_generator=_Described))


def _rows(schema: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (name, _type_text(field), json.dumps(field["default"]) if "default" in field else "required",
         field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]  # fmt: skip


def _type_text(field: dict[str, Any]) -> str:
    """A field's type in a few words: `int`, `fp32 | int8`, `list of str`, `none` left out."""
    if "anyOf" in field:
        return " | ".join(_type_text(one) for one in field["anyOf"] if one.get("type") != "null")
    if "discriminator" in field:
        return f"mapping with {field['discriminator']['propertyName']}"
    if "enum" in field:
        return " | ".join(str(one) for one in field["enum"])
    if "const" in field:
        return str(field["const"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type_text(field['items'])}" if "items" in field else "list"
    if kind == "object":
        values = field.get("additionalProperties")
        held = _type_text(values) if isinstance(values, dict) and values else ""
        if held.startswith("mapping"):
            return f"mapping of {held.replace('mapping', 'mappings', 1)}"
        return f"mapping to {held}" if held else "mapping"
    return {"integer": "int", "number": "float", "boolean": "true | false", "string": "text"}.get(kind, str(kind))
