"""A sandboxed jinja2 that knows no undefined names and tells file and line of what goes wrong."""

from __future__ import annotations

import json
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from runner.errors import InvalidRecipe, Place, Problem

PAGE_WIDTH = 120


@lru_cache(maxsize=8)
def environment(templates: Path) -> SandboxedEnvironment:
    """Returns the environment of a folder of templates. Filter `json` writes a value as JSON."""
    made = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return made


def render(templates: Path, name: str, context: dict[str, Any]) -> str:
    """Returns the rendered template.

    Raises:
        InvalidRecipe: there is no such template, it has an error, or it asks for something that the context lacks.
    """
    try:
        return environment(templates).get_template(name).render(context)
    except jinja2.TemplateNotFound as error:
        raise _invalid("missing-template", f"there is no template '{error.name}'", Place(str(templates))) from None
    except jinja2.TemplateSyntaxError as error:
        raise _invalid("template-error", str(error.message), Place(error.filename or name, error.lineno)) from None
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _invalid("template-error", str(error), _template_line(error, templates, name)) from None


def _invalid(rule: str, cause: str, place: Place) -> InvalidRecipe:
    return InvalidRecipe(Problem(rule, cause, place))


def _template_line(error: Exception, templates: Path, name: str) -> Place:
    """The innermost line of a template in the error's traceback, which jinja2 rewrites to template lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(templates)]
    return Place(frames[-1].filename, frames[-1].lineno) if frames else Place(str(templates / name))


def pretty_json(value: Any, indent: int = 0) -> str:
    """Returns JSON with two spaces a level, in which whatever fits into a line stands in one below the top two levels."""
    flat = json.dumps(value, ensure_ascii=False)
    fits = indent + len(flat) <= PAGE_WIDTH and indent >= 4
    if not isinstance(value, (dict, list)) or not value or fits:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key)}: {pretty_json(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + pretty_json(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
