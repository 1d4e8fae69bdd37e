"""A variant's config: its pipeline's template, with the variant's settings laid over it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from runner.errors import InvalidRecipe, Place, Problem, did_you_mean
from runner.models.weight_count import count_weights
from runner.recipe.info import Info, Variant
from runner.templating.clone import PIPELINE_SUFFIX, Clone
from runner.templating.environment import pretty_json, render


def render_config(info: Info, variant: Variant, clone: Clone) -> str:
    """Returns the config file of a variant: JSON.

    Raises:
        InvalidRecipe: there is no such pipeline, its template does not give JSON, or a setting names nothing in it.
    """
    if variant.pipeline not in clone.pipelines:
        raise InvalidRecipe(_no_pipeline(variant, clone))
    config = _pipeline_config(info, variant, clone)
    problems = [problem for _, problem in _unfit_settings(variant, config)]
    if problems:
        raise InvalidRecipe(*problems)
    return pretty_json(_with_settings(config, variant.settings)) + "\n"


def misnamed(info: Info, variant: Variant, clone: Clone) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """Yields (path below the variant in info.yml, problem) of a pipeline that does not exist, or of what its settings miss.

    Raises:
        InvalidRecipe: the pipeline's template has an error.
    """
    if variant.pipeline not in clone.pipelines:
        yield ("pipeline",), _no_pipeline(variant, clone)
    elif variant.settings:
        yield from _unfit_settings(variant, _pipeline_config(info, variant, clone))


def _no_pipeline(variant: Variant, clone: Clone) -> Problem:
    remedy = did_you_mean(str(variant.pipeline), clone.pipelines)
    return Problem("unknown-pipeline", f"there is no pipeline '{variant.pipeline}'", remedy=remedy)


def _unfit_settings(variant: Variant, config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Problem]]:
    parts = _named_parts(config)
    for name, changes in variant.settings.items():
        if name not in parts:
            cause = f"the pipeline {variant.pipeline} has no pass or data config '{name}'"
            yield ("settings", name), Problem("unknown-setting", cause, remedy=did_you_mean(name, parts))
        elif changes is not None and not isinstance(changes, dict):
            cause = f"'{name}' must map options to values, or be null to leave it out"
            yield ("settings", name), Problem("bad-value", cause)


def _pipeline_config(info: Info, variant: Variant, clone: Clone) -> dict[str, Any]:
    name = f"pipelines/{variant.pipeline}{PIPELINE_SUFFIX}"
    counted = count_weights(info.model.id, info.model.task)
    context = {
        "info": info,
        "variant": variant,
        "tied": counted is None or counted.tied,  # the head is the embedding, or may be
        "surely_tied": counted is not None and counted.tied,
    }
    text = render(clone.templates, name, context)
    try:
        config: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        cause = f"variant {variant.name} of {info.name} does not render to JSON: {error.msg} at '{line}'"
        raise InvalidRecipe(Problem("bad-rendering", cause, Place(str(clone.templates / name)))) from None
    return config


def _named_parts(config: Mapping[str, Any]) -> list[str]:
    return [*config["passes"], *(data["name"] for data in config.get("data_configs", ()))]


def _with_settings(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    passes = {
        name: _merged(step, settings.get(name) or {})
        for name, step in config["passes"].items()
        if settings.get(name, {}) is not None
    }
    data = [
        _merged(one, settings.get(one["name"]) or {})
        for one in config.get("data_configs", ())
        if settings.get(one["name"], {}) is not None
    ]
    return {name: data if name == "data_configs" else passes if name == "passes" else value for name, value in config.items()}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lays values over others, mappings into mappings; null takes a key away."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def placed_at(problem: Problem, place: Place | None) -> Problem:
    """Returns the problem at a place of info.yml, unless it has one of its own."""
    return problem if problem.place else replace(problem, place=place)
