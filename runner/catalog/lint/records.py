"""The rules on records: results and locks belong to the recipe, and results meet its gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.bench.results import Results, judge, read_results
from runner.bench.scenarios import FIGURES
from runner.catalog.lint.rule import Fault, Faults, Rule, faults_of
from runner.catalog.lint.subject import Subject
from runner.errors import InvalidRecipe, Place, did_you_mean
from runner.models.lock import NAME as LOCK
from runner.models.lock import pinned, read_lock
from runner.passes.record import CURRENT, told_of
from runner.recipe.document import Node, read_document
from runner.recipe.info import Gate, HubSource


def _readable(subject: Subject) -> Iterator[tuple[Path, Results]]:
    for path in sorted((subject.folder / "results").glob("*.json")):
        try:
            yield path, read_results(path)
        except InvalidRecipe:
            continue  # told by results-are-valid


def _are_valid(subject: Subject) -> Faults:
    for path in sorted((subject.folder / "results").glob("*.json")):
        try:
            yield from _belongs(subject, path, read_results(path))
        except InvalidRecipe as error:
            yield from faults_of(error, Place(str(path)))


def _belongs(subject: Subject, path: Path, results: Results) -> Faults:
    tree = read_document(path)
    names = [variant.name for variant in subject.info.recipes]
    if results.recipe != subject.info.name:
        yield Fault(f"it measures the recipe '{results.recipe}'", _line(tree, "recipe"))
    if results.variant not in names:
        cause = f"there is no variant '{results.variant}'"
        yield Fault(cause, _line(tree, "variant"), did_you_mean(str(results.variant), names))
    if path.name != results.file_name:
        yield Fault(f"it is called {path.name}, and says that it is {results.file_name}", _line(tree, "host"))
    if results.smoke:
        yield Fault("a smoke run measures a tiny model with random weights", _line(tree, "smoke"), "measure the real one")
    for number, row in enumerate(results.rows):
        if row.name not in FIGURES:
            place = _line(tree, "rows", number, "name")
            yield Fault(f"there is no figure '{row.name}'", place, did_you_mean(row.name, FIGURES))


def _line(tree: Node, *path: str | int) -> Place:
    place = tree.deepest(path).origin.place
    assert place is not None  # a document that was read from a file
    return place


def _meet_gates(subject: Subject) -> Faults:
    for path, results in _readable(subject):
        variant = next((one for one in subject.info.recipes if one.name == results.variant), None)
        if variant is None or results.weights == "random":  # random ones tell nothing of quality
            continue
        for metric, bar in variant.gates.items():
            verdict = judge(Gate.parse(metric, bar), results.rows)
            if verdict.value is not None and not verdict.met:
                yield Fault(f"{results.variant} misses its gate: {verdict}", _line_of_value(path, results, metric, bar))


def _line_of_value(path: Path, results: Results, metric: str, bar: str) -> Place:
    number = [row.name for row in results.rows].index(metric)
    side = "ratio" if Gate.parse(metric, bar).relative else "optimised"
    return _line(read_document(path), "rows", number, side, "value")


def _are_of_today(subject: Subject) -> Faults:
    configs = {variant.name: read_document(subject.folder / variant.file).plain() for variant, _ in subject.loaded()}
    for path, results in _readable(subject):
        told = told_of(results.model_dump(), configs.get(str(results.variant)))
        if told != CURRENT:
            tree = read_document(path)
            yield Fault(f"measured with {told}", _line(tree, "passes" if results.passes else "date"))


def _is_measured(subject: Subject) -> Faults:
    measured = {results.variant: {row.name for row in results.rows} for _, results in _readable(subject)}
    for number, variant in enumerate(subject.info.recipes):
        if variant.name not in measured:
            yield Fault(f"{variant.name} has no results file", subject.place("recipes", number, "name"))
            continue
        for metric in variant.gates:
            if metric in FIGURES and metric not in measured[variant.name]:
                place = subject.place("recipes", number, "gates", metric)
                yield Fault(f"the results of {variant.name} do not say its {metric}, for which it has a gate", place)


def _lock_is_valid(subject: Subject) -> Faults:
    path = subject.folder / LOCK
    if not path.is_file():
        return
    model = subject.info.model
    try:
        lock = read_lock(subject.folder, subject.info.name)
        pinned(lock, model.sources or [HubSource(hub=model.id)], subject.folder)
    except InvalidRecipe as error:
        yield from faults_of(error, Place(str(path)))
        return
    tree = read_document(path)
    for key, locked, named in (("recipe", lock.recipe, subject.info.name), ("model", lock.model, model.id)):
        if locked != named:
            yield Fault(f"it locks the {key} '{locked}', not {named}", _line(tree, key))


RULES = (
    Rule(
        "results-are-valid", "must", "Every results file is readable, and of a variant of its recipe.",
        "README.md would show figures of something else.", "measure again with 'recipe bench --save', or take the file out",
        of_recipe=_are_valid,
    ),
    Rule(
        "results-meet-gates", "must", "Recorded results of trained weights meet the gates of their variant.",
        "A recipe must not promise what its own results deny.",
        "mend the recipe and measure again, or say a bar that it reaches",
        of_recipe=_meet_gates,
    ),
    Rule(
        "results-are-of-today", "should", "Recorded results were measured with the versions and options of today's passes.",
        "Passes that have changed since make another model, of which these figures may not be true.",
        "measure again with 'recipe bench --save' where there is such a machine; README.md says it until then",
        of_recipe=_are_of_today,
    ),
    Rule(
        "lock-is-valid", "must", "recipe.lock.json, where there is one, is of the recipe's model and of one of its sources.",
        "`recipe run --locked` would refuse the run.", "make it again: 'recipe lock ID'",
        of_recipe=_lock_is_valid,
    ),
    Rule(
        "is-measured", "should", "Every variant has a results file, which says every figure that has a gate.",
        "Claims need figures.", "run 'recipe bench --save' where the model can be had",
        of_recipe=_is_measured,
    ),
)  # fmt: skip
