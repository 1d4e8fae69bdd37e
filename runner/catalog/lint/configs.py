"""The rules on configs: they are there, they load, and they say what info.yml says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject, target_of_variant
from runner.errors import InvalidRecipe, Place, RecipeError, nearest
from runner.recipe.info import Variant
from runner.targets.target import TARGETS
from runner.templating.pipeline import render_config

EVALUATION_PATHS = ("text", "sentences", "pairs", "images", "speech", "prompts")
_NAMES_THE_OUTPUT = {"output_dir", "output_name", "cache_dir"}


def _named_files(subject: Subject) -> Iterator[tuple[str, Place]]:
    for number, variant in enumerate(subject.info.recipes):
        yield variant.file, subject.place("recipes", number, "file")
    for key in EVALUATION_PATHS:
        path = getattr(subject.info.evaluation, key)
        if path:
            yield path, subject.place("evaluation", key)


def _files_exist(subject: Subject) -> Faults:
    for name, place in _named_files(subject):
        if not (subject.folder / name).exists():
            names = [path.relative_to(subject.folder).as_posix() for path in subject.files]
            near = nearest(name, names)
            yield Fault(f"there is no '{name}'", place, f"did you mean '{near}'?" if near else None)


def _paths_stay_inside(subject: Subject) -> Faults:
    for name, place in _named_files(subject):
        if not (subject.folder / name).resolve().is_relative_to(subject.folder.resolve()):
            yield Fault(f"'{name}' lies outside of the recipe folder", place)


def _configs_load(subject: Subject) -> Faults:
    """A foreign config for a target that is none of ours is another runner's to read."""
    theirs = {variant.file for variant in subject.info.recipes if subject.foreign and target_of_variant(variant) is None}
    for name, loaded in subject.configs.items():
        if isinstance(loaded, RecipeError) and name not in theirs:
            for problem in loaded.problems:
                place = problem.place or Place(str(subject.folder / name))
                yield Fault(f"{problem.rule}: {problem.cause}", place, problem.remedy)


def _config_agrees(subject: Subject) -> Faults:
    for variant, loaded in subject.loaded():
        model = loaded.config.input_model
        if model.model_path != subject.info.model.id and not subject.foreign:
            place = loaded.tree.deepest(("input_model", "model_path")).origin.place
            cause = f"info.yml names the model {subject.info.model.id}, the config {model.model_path}"
            yield Fault(cause, place or subject.place("model", "id"))
        system = loaded.config.system(loaded.config.target)
        accelerators = system.accelerators if system else []
        providers = [name for accelerator in accelerators for name in accelerator.execution_providers]
        if providers[:1] != [variant.ep] and (providers or not subject.foreign):
            place = loaded.tree.deepest(("systems",)).origin.place
            yield Fault(
                f"info.yml says {variant.ep}, the config {', '.join(providers) or 'no provider'}", place or subject.place()
            )


def _precision_is_legal(subject: Subject) -> Faults:
    for number, variant in enumerate(subject.info.recipes):
        target = target_of_variant(variant)
        if target is None:
            cause = f"{variant.name}: {variant.ep} is none of the targets {', '.join(TARGETS)}"
            yield Fault(cause, subject.place("recipes", number, "ep"))
        elif variant.precision is not None and variant.precision not in target.precisions:
            cause = f"{variant.name}: {target.name} runs {', '.join(target.precisions)}, not {variant.precision}"
            yield Fault(cause, subject.place("recipes", number, "precision"))


def _variants_differ(subject: Subject) -> Faults:
    seen: dict[str, str] = {}
    places = {variant.name: place for variant, place in subject.variants()}
    for variant, loaded in subject.loaded():
        content = {key: value for key, value in loaded.tree.plain().items() if key not in _NAMES_THE_OUTPUT}
        first = seen.setdefault(json.dumps(content, sort_keys=True, default=str), variant.name)
        if first != variant.name:
            yield Fault(f"{variant.name} makes the same model as {first}: their configs are equal", places[variant.name])


def _settings_say_something(subject: Subject) -> Faults:
    for number, variant in enumerate(subject.info.recipes):
        if not variant.pipeline or not variant.settings:
            continue
        try:
            own = _pipelines_own(subject, variant)
        except InvalidRecipe:
            continue  # told by names-are-known
        for part, changes in variant.settings.items():
            for path in _repeated(changes, own.get(part, {})):
                place = subject.place("recipes", number, "settings", part, *path)
                yield Fault(f"{variant.name}: '{'.'.join((part, *path))}' is what {variant.pipeline} says anyway", place)


def _pipelines_own(subject: Subject, variant: Variant) -> Mapping[str, Any]:
    """The passes and data configs of the pipeline as it is without settings."""
    config = json.loads(render_config(subject.info, variant.model_copy(update={"settings": {}}), subject.clone))
    return {**config["passes"], **{data["name"]: data for data in config.get("data_configs", ())}}


def _repeated(changes: Any, own: Any) -> Iterator[tuple[str, ...]]:
    """Yields the path of every setting that is equal to the pipeline's own."""
    if not isinstance(changes, dict) or not isinstance(own, dict):
        return
    for key, value in changes.items():
        if key in own and isinstance(value, dict) and isinstance(own[key], dict):
            yield from ((key, *below) for below in _repeated(value, own[key]))
        elif key in own and value == own[key]:
            yield (key,)


def _has_gates(subject: Subject) -> Faults:
    for variant, place in subject.variants():
        if not variant.gates:
            yield Fault(f"{variant.name} has no gate", place)


RULES = (
    Rule(
        "files-exist", "must", "Every file that info.yml names is there.",
        "A variant without its config cannot be run.", "write or render the file, or correct its name",
        of_recipe=_files_exist, elsewhere="must",
    ),
    Rule(
        "paths-stay-inside", "must", "Every path of info.yml stays inside the folder.",
        "A folder must work when it is copied elsewhere.", "move the file into the recipe folder",
        of_recipe=_paths_stay_inside, elsewhere="must",
    ),
    Rule(
        "config-loads", "must", "Every config is valid: known passes, known options, legal values.",
        "An option that nobody knows would change nothing, silently.", "correct the config, or its template",
        of_recipe=_configs_load, elsewhere="must",
    ),
    Rule(
        "config-agrees", "must", "A config names the model and execution provider that info.yml names.",
        "Otherwise the listing lies about what is run.", "make info.yml and the config agree",
        of_recipe=_config_agrees, elsewhere="must",
    ),
    Rule(
        "precision-is-legal", "must", "The target can run the variant's precision.",
        "DirectML, for one, has no int8 kernels for language models.", "choose another precision or target",
        of_recipe=_precision_is_legal,
    ),
    Rule(
        "variants-differ", "must", "No two variants of a recipe have equal configs.",
        "Two names for one model are measured and kept up to date twice.", "take one of them out",
        of_recipe=_variants_differ, elsewhere="should",
    ),
    Rule(
        "settings-say-something", "should", "Settings say only how a variant differs from its pipeline.",
        "What repeats the pipeline hides the difference, and stays behind when the pipeline moves on.",
        "take the setting out of info.yml",
        of_recipe=_settings_say_something,
    ),
    Rule(
        "has-gates", "should", "Every variant says what it must reach.",
        "A variant without a bar can rot unnoticed.", "add 'gates' to the variant, such as 'cosine: \">= 0.99\"'",
        of_recipe=_has_gates,
    ),
)  # fmt: skip
