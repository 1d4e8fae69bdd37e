"""The rules on names: recipes, aliases, variants, and whatever else info.yml calls by a name."""

from __future__ import annotations

from collections.abc import Iterator

from runner.bench.scenarios import FIGURES
from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject, target_of_variant
from runner.catalog.names import is_name
from runner.errors import InvalidRecipe, Place, did_you_mean
from runner.models.tasks import TASKS
from runner.targets.target import target_name
from runner.templating.recipe import misnamed_of


def _name_is_folder(subject: Subject) -> Faults:
    if subject.info.name != subject.folder.name:
        cause = f"the recipe is called '{subject.info.name}', its folder '{subject.folder.name}'"
        yield Fault(cause, subject.place("name"))


def _names_are_unique(subject: Subject) -> Faults:
    taken: dict[str, str] = {}
    for other in subject.catalogue.others(subject.folder):
        for name in {other.info.name, other.folder.name, *other.info.aliases}:
            taken.setdefault(name.lower(), f"{other.info.name} in {other.folder}")
    for name, place in _own_names(subject):
        if name.lower() in taken:
            yield Fault(f"'{name}' is also a name of {taken[name.lower()]}", place)
        taken.setdefault(name.lower(), "this recipe itself")


def _names_are_readable(subject: Subject) -> Faults:
    for name, place in _own_names(subject):
        if not is_name(name.lower()):
            yield Fault(f"'{name}' is no name for a recipe, or would be read as a variant of another", place)


def _own_names(subject: Subject) -> Iterator[tuple[str, Place]]:
    yield subject.info.name, subject.place("name")
    for number, alias in enumerate(subject.info.aliases):
        yield alias, subject.place("aliases", number)


def _names_are_known(subject: Subject) -> Faults:
    task = subject.info.model.task
    if task.removesuffix("-with-past") not in TASKS:
        yield Fault(f"there is no task '{task}'", subject.place("model", "task"), did_you_mean(task, TASKS))
    for number, variant in enumerate(subject.info.recipes):
        for name in variant.gates:
            if name not in FIGURES:
                place = subject.place("recipes", number, "gates", name)
                yield Fault(f"there is no figure '{name}' to hold a gate against", place, did_you_mean(name, FIGURES))
    try:
        for number, path, problem in misnamed_of(subject.info, subject.clone):
            yield Fault(problem.cause, problem.place or subject.place("recipes", number, *path), problem.remedy)
    except InvalidRecipe:
        return  # the template's error, told by is-rendered


def _variants_are_named(subject: Subject) -> Faults:
    for variant, place in subject.variants():
        target = target_of_variant(variant)
        if target is None:
            continue
        short, parts = target_name(target.provider), variant.name.split("-")
        fix = f"call it '{short}-{variant.precision}', with what else sets it apart behind"
        if parts[0] != short:
            yield Fault(f"'{variant.name}' runs on {target.provider}, so its name begins with '{short}'", place, fix)
        if variant.precision is not None and variant.precision not in parts:
            yield Fault(f"'{variant.name}' does not say its precision, {variant.precision}", place, fix)


RULES = (
    Rule(
        "name-is-folder", "must", "The recipe's name is its folder's name.",
        "People type what they see in a file listing.", "rename the folder, or change 'name' in info.yml",
        of_recipe=_name_is_folder,
    ),
    Rule(
        "names-are-unique", "must", "No two recipes share a name or an alias, whatever its case.",
        "A name on the command line must lead to one recipe.", "give one of them another name",
        of_recipe=_names_are_unique,
    ),
    Rule(
        "names-are-readable", "must", "A name has letters, digits, dots and hyphens, and is no variant's (`NAME.cpu.int4`).",
        "The command line takes what follows a target for a variant.", "choose another name",
        of_recipe=_names_are_readable,
    ),
    Rule(
        "names-are-known", "must", "Task, gates, pipeline and settings have names that something reads.",
        "A misspelt one would leave a step or a bar out, silently.", "correct the name in info.yml",
        of_recipe=_names_are_known,
    ),
    Rule(
        "variants-are-named", "must", "A variant's name begins with its target (cpu, cuda, dml) and holds its precision.",
        "Who reads `cuda-int4` must get 4 bits on CUDA.", "rename the variant and its config file",
        of_recipe=_variants_are_named,
    ),
)  # fmt: skip
