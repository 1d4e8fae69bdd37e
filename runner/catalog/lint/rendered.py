"""The rules on rendered files: they are as their templates say, and requirements pin what was tested."""

from __future__ import annotations

import re
import tempfile
from itertools import zip_longest
from pathlib import Path

from runner.catalog.lint.rule import Fault, Faults, Rule, faults_of
from runner.catalog.lint.subject import Catalogue, Subject, target_of_variant
from runner.errors import InvalidRecipe, Place, did_you_mean
from runner.passes.table import options_of
from runner.recipe.info import Info, Variant
from runner.recipe.load import load_config
from runner.targets.target import Target, target_named
from runner.templating.clone import PIPELINE_SUFFIX, Clone, normal_name
from runner.templating.pages import render_pages
from runner.templating.pipeline import render_config
from runner.templating.recipe import Rendering, misnamed_of, requirements_file, targets_of

_BRINGS_RUNNER = ("-e ", "onnx-recipes @ ")
_LONGEST_QUOTE = 60
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==([\w.+!-]+)")


def _is_rendered(subject: Subject) -> Faults:
    try:
        if any(misnamed_of(subject.info, subject.clone)):
            return  # told by names-are-known
        renderings = subject.renderings
    except InvalidRecipe as error:
        yield from faults_of(error, subject.place())
        return
    pipelines = {variant.file: f"info.yml or {variant.pipeline}{PIPELINE_SUFFIX}" for variant in subject.info.recipes}
    for rendering in renderings:
        source = pipelines.get(rendering.path.name, "info.yml or its template")
        yield from _differs(rendering, f"run 'recipe render {subject.info.name}'; what is to stay belongs in {source}")


def _pages_are_rendered(catalogue: Catalogue) -> Faults:
    if catalogue.root is None or len(catalogue.entries) < len(catalogue.files):
        return  # without a recipe that cannot be read the pages would lose its line
    try:
        for rendering in render_pages(catalogue.root, catalogue.entries, catalogue.clone):
            yield from _differs(rendering, "run 'recipe render'")
    except InvalidRecipe as error:
        yield from faults_of(error, Place(str(catalogue.root)))


def _templates_are_valid(catalogue: Catalogue) -> Faults:
    """Loads one config a pipeline as its template makes it today, which the files on disk may not be yet."""
    seen: set[str] = set()
    for entry in catalogue.entries:
        for variant in entry.info.recipes:
            if variant.pipeline in {*seen, None} or variant.pipeline not in catalogue.clone.pipelines:
                continue
            seen.add(variant.pipeline)
            yield from _of_template(entry.info, variant, entry.folder / variant.file, catalogue.clone)


def _of_template(info: Info, variant: Variant, config: Path, clone: Clone) -> Faults:
    try:
        text = render_config(info, variant, clone)
    except InvalidRecipe:
        return  # told by is-rendered, with the template's line
    if config.is_file() and config.read_text(encoding="utf-8") == text:
        return  # checked by config-loads
    template = clone.templates / "pipelines" / f"{variant.pipeline}{PIPELINE_SUFFIX}"
    with tempfile.TemporaryDirectory() as scratch:
        rendered = Path(scratch, config.name)
        rendered.write_text(text, encoding="utf-8")
        try:
            load_config([rendered], options_of)
        except InvalidRecipe as error:
            for problem in error.problems:
                yield Fault(f"{problem.rule}: {problem.cause}", _line_of(problem.cause, template), problem.remedy)


def _line_of(cause: str, template: Path) -> Place:
    """The first line of a template that holds a name which a cause quotes."""
    names = re.findall(r"'([^']+)'", cause)
    lines = template.read_text(encoding="utf-8").splitlines()
    number = next((at for at, line in enumerate(lines, start=1) if any(f'"{name}"' in line for name in names)), None)
    return Place(str(template), number)


def _differs(rendering: Rendering, fix: str) -> Faults:
    if not rendering.path.is_file():
        yield Fault(f"{rendering.path.name} has not been rendered", Place(str(rendering.path)), fix)
        return
    on_disk = rendering.path.read_bytes()
    if on_disk == rendering.content:
        return
    try:
        line, ours, theirs = _first_difference(on_disk.decode(), rendering.content.decode())
    except UnicodeDecodeError:
        yield Fault(f"{rendering.path.name} differs from its rendering", Place(str(rendering.path)), fix)
        return
    cause = f"{rendering.path.name} differs from its rendering: it says {ours}, not {theirs}"
    yield Fault(cause, Place(str(rendering.path), line), fix)


def _first_difference(old: str, new: str) -> tuple[int, str, str]:
    """Returns the first line that differs, counted from 1, and what stands there in either text."""
    pairs = zip_longest(old.splitlines(keepends=True), new.splitlines(keepends=True), fillvalue="")
    number, one, other = next((at, one, other) for at, (one, other) in enumerate(pairs, start=1) if one != other)
    alike = next((at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)
    start = max(0, alike - _LONGEST_QUOTE // 3)
    return number, _quoted(one, start), _quoted(other, start)


def _quoted(line: str, start: int) -> str:
    """Returns the piece of a line that begins at `start`; an odd ending of the line is spelled out."""
    piece = line[start : start + _LONGEST_QUOTE].removesuffix("\n").strip(" ")
    before, behind = "…" if start else "", "…" if len(line) > start + _LONGEST_QUOTE else ""
    told = f"'{before}{piece}{behind}'" if piece.isprintable() else repr(piece)
    return told if line.endswith("\n") else f"{told} without an end of line" if line else "nothing"


def _requirements_are_pinned(subject: Subject) -> Faults:
    rendered = any(variant.pipeline for variant in subject.info.recipes)
    for target in targets_of(subject.info) if rendered else ():
        if not (subject.folder / requirements_file(target)).is_file():
            cause = f"there are variants for {target.name}, but no {requirements_file(target)}"
            yield Fault(cause, _first_variant_of(subject, target))
    if not rendered and not (subject.folder / "requirements.txt").is_file():
        yield Fault("there is no requirements.txt", Place(str(subject.folder)))
    for path in sorted(subject.folder.glob("requirements*.txt")):
        yield from _of_requirements(subject, path)


def _first_variant_of(subject: Subject, target: Target) -> Place:
    return next(place for variant, place in subject.variants() if target_of_variant(variant) == target)


def _of_requirements(subject: Subject, path: Path) -> Faults:
    name = path.stem.removeprefix("requirements").lstrip("-.") or "cpu"
    try:
        target = target_named(name)
        pins = subject.clone.pins(target)
    except InvalidRecipe as error:
        yield from faults_of(error, Place(str(path)))
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    if not any(line.startswith(_BRINGS_RUNNER) for line in lines):
        yield Fault("no line brings the runner", Place(str(path), 1))
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith(("#", *_BRINGS_RUNNER)):
            yield from _of_pin(line, pins, f"constraints/{target.name}.txt", Place(str(path), number))


def _of_pin(line: str, pins: dict[str, str], lock: str, place: Place) -> Faults:
    found = _PIN.fullmatch(line.split(";", maxsplit=1)[0].strip())
    if not found:
        yield Fault(f"'{line.strip()}' is not pinned as name==version", place)
        return
    name, version = found[1], found[2]
    tested = pins.get(normal_name(name))
    if tested is None:
        yield Fault(f"{lock} has no version of {name}", place, did_you_mean(normal_name(name), pins))
    elif tested != version:
        yield Fault(f"{name} is pinned to {version}, but {tested} of {lock} was tested", place)


RULES = (
    Rule(
        "is-rendered", "must", "Rendered files are equal to their rendering.",
        "What is edited by hand is lost with the next rendering.",
        "change the template or info.yml, then run 'recipe render'",
        of_recipe=_is_rendered,
    ),
    Rule(
        "templates-are-valid", "must", "What a pipeline's template makes today is a valid config.",
        "The next rendering would break every recipe that uses it.", "correct the template",
        of_clone=_templates_are_valid,
    ),
    Rule(
        "overviews-are-rendered", "must", "recipes/README.md and .github/CODEOWNERS are as the recipes make them.",
        "A recipe that the overview lacks is not found, and nobody is asked to review it.", "run 'recipe render'",
        of_clone=_pages_are_rendered,
    ),
    Rule(
        "requirements-are-pinned", "must",
        "Every target with variants has its requirements file, which pins each package to the version in constraints/.",
        "A recipe that installs something else tomorrow is not the one that was tested.",
        "run 'recipe render', or change constraints/",
        of_recipe=_requirements_are_pinned,
    ),
)  # fmt: skip
