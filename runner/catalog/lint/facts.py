"""The rules on facts: what info.yml says of the model, where it is from, and who answers for the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.catalog.licences import UNCLASSIFIED, licence_named
from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject
from runner.errors import did_you_mean
from runner.models.model_cards import card_of
from runner.models.tasks import TASKS
from runner.models.twin import architecture_of, context_of, is_known
from runner.models.weight_count import count_weights
from runner.recipe.info import Provenance
from runner.templating.kinds import kind_named, kind_of

_NO_LICENCE = {"", "unknown", "other", "none", "tbd", "todo", "?"}
_OR_THE_TABLE = ", or correct runner/models/model_cards.py if the model's card says so today"
_PARAMETER_TOLERANCE = 0.01
_BYTES_A_PARAMETER = (0.4, 6.0)  # from 4 bits to fp32 with buffers and a second copy of tied weights


def _licence_is_stated(subject: Subject) -> Faults:
    model = subject.info.model
    if model.licence.strip().lower() in _NO_LICENCE:
        fix = "name it by its SPDX id, or by the name that its text gives it"
        yield Fault(f"'{model.licence}' is no licence", subject.place("model", "licence"), fix)
    card = None if subject.foreign else card_of(model.id)
    if card is None:
        return
    if model.gated != card.gated:
        told = "only after its licence was accepted" if card.gated else "to everybody"
        cause = f"the hub gives {model.id} {told}, and info.yml says otherwise"
        yield Fault(cause, subject.place("model", "gated"), f"say 'gated: {str(card.gated).lower()}'{_OR_THE_TABLE}")
    if not same_licence(model.licence, card.licence):
        cause = f"{model.id} comes under {card.licence}, not {model.licence}"
        yield Fault(cause, subject.place("model", "licence"), f"write '{card.licence}'{_OR_THE_TABLE}")


def _licence_is_classified(subject: Subject) -> Faults:
    licence = subject.info.model.licence
    if licence.strip().lower() not in _NO_LICENCE and licence_named(licence).category == UNCLASSIFIED:
        yield Fault(f"nothing is known of the licence '{licence}'", subject.place("model", "licence"))


def same_licence(one: str, other: str) -> bool:
    """Returns whether two names are one licence's: case and punctuation aside, one is how the other begins."""
    letters, others = (re.sub(r"[^a-z0-9]|licen[cs]e", "", name.lower()) for name in (one, other))
    return bool(letters and others) and (letters.startswith(others) or others.startswith(letters))


def _facts_are_stated(subject: Subject) -> Faults:
    model = subject.info.model
    missing = [key for key in ("parameters", "download_mb") if getattr(model, key) is None]
    if missing:
        yield Fault(f"nothing is said of the model's {' and '.join(missing)}", subject.place("model", missing[0]))
    task = TASKS.get(model.task.removesuffix("-with-past"))
    reads_text = task is not None and "text" in task.reads and "image" not in task.reads
    if model.context_length is None and reads_text and not subject.foreign:
        yield Fault("a model that reads text has a 'context_length'", subject.place("model"))


def _provenances(subject: Subject) -> Iterator[tuple[str, Provenance | None]]:
    model = subject.info.model
    for name in type(model.provenance).model_fields:
        if name == "gated" or getattr(model, name) is not None:
            yield name, getattr(model.provenance, name)


def _facts_have_provenance(subject: Subject) -> Faults:
    missing = [name for name, provenance in _provenances(subject) if provenance is None]
    if missing:
        yield Fault(f"nothing says where {', '.join(missing)} is from", subject.place("model", "provenance"))


def _facts_are_checked(subject: Subject) -> Faults:
    unchecked = [name for name, provenance in _provenances(subject) if provenance and provenance.checked is None]
    if unchecked:
        yield Fault(f"nobody has compared {', '.join(unchecked)} with its source", subject.place("model", "provenance"))


def _parameters_agree(subject: Subject) -> Faults:
    model = subject.info.model
    counted = count_weights(model.id, model.task)
    if counted is None or model.parameters is None:
        return
    difference = model.parameters / counted.total - 1
    if abs(difference) > _PARAMETER_TOLERANCE:
        cause = f"info.yml says {model.parameters:,} parameters, the architecture of {model.id} has {counted.total:,}"
        place = subject.place("model", "parameters")
        yield Fault(f"{cause} ({difference:+.1%})", place, f"write {counted.total}, or correct the model's id")


def _architecture_agrees(subject: Subject) -> Faults:
    """The architecture and context of an id that the tables of tiny twins know."""
    info = subject.info
    if subject.foreign or not is_known(info.model.id):
        return
    twin = architecture_of(info.model.id)
    if info.arch != twin.model_type:
        cause = f"{info.model.id} is a {twin.model_type}, not a {info.arch}"
        yield Fault(cause, subject.place("arch"), f"write '{twin.model_type}', or correct the model's id")
    context = context_of(twin)
    if info.model.context_length is not None and context is not None and info.model.context_length != context:
        cause = f"{info.model.id} reads {context:,} tokens, not {info.model.context_length:,}"
        yield Fault(cause, subject.place("model", "context_length"), f"write {context}, or correct the model's id")


def _pipelines_serve_the_model(subject: Subject) -> Faults:
    info = subject.info
    kind = kind_of(info.model.task.removesuffix("-with-past"), info.arch)
    served = None if kind is None else {kind.name, *kind.also}
    for variant, place in subject.variants():
        named = kind_named(variant.pipeline or "")
        if named is not None and served is not None and named.name not in served:
            cause = (
                f"'{variant.name}': the pipeline {variant.pipeline} is for {', '.join(named.tasks)}, not for {info.model.task}"
            )
            yield Fault(cause, place, f"name one of {', '.join(sorted(served))}, or correct the task and architecture")


def _facts_agree(subject: Subject) -> Faults:
    model = subject.info.model
    if model.download_mb is None or model.parameters is None:
        return
    each = model.download_mb * 1e6 / model.parameters
    if not _BYTES_A_PARAMETER[0] <= each <= _BYTES_A_PARAMETER[1]:
        told = f"{model.download_mb:g} MB for {model.parameters:,} parameters are {each:.2f} bytes each"
        yield Fault(told, subject.place("model", "download_mb"))


def _tells_what_it_is(subject: Subject) -> Faults:
    for key in ("title", "summary"):
        if not getattr(subject.info, key):
            yield Fault(f"info.yml has no {key}", subject.place(key))


def _has_maintainers(subject: Subject) -> Faults:
    if not subject.info.maintainers:
        yield Fault("nobody answers for this recipe", subject.place("maintainers"))
    for number, name in enumerate(subject.info.maintainers):
        if not name.startswith("@") or len(name) < 2:
            yield Fault(
                f"'{name}' is no name on the forge", subject.place("maintainers", number), f"write '@{name.strip('@ ')}'"
            )


def _is_reviewed(subject: Subject) -> Faults:
    if subject.info.lifecycle.status == "draft":
        yield Fault("the recipe is a draft", subject.place("lifecycle"))


def _origin_is_known(subject: Subject) -> Faults:
    origin = subject.info.origin
    if origin is None:
        return
    names = [other.info.name for other in subject.catalogue.others(subject.folder)]
    if names and origin.recipe not in names:
        cause = f"the recipe that this one was copied from, '{origin.recipe}', is not in the catalogue"
        yield Fault(cause, subject.place("origin", "recipe"), did_you_mean(origin.recipe, names))


RULES = (
    Rule(
        "licence-is-stated", "must", "info.yml states the licence, and that the model is gated where its family is.",
        "Whoever builds on a model must know its terms first.", "correct 'licence' and 'gated'",
        of_recipe=_licence_is_stated, elsewhere="should",
    ),
    Rule(
        "architecture-agrees", "must", "Architecture and context length are those of the model, where its id is known here.",
        "Filters, twins and estimates go by them.", "correct 'arch' or 'context_length'",
        of_recipe=_architecture_agrees,
    ),
    Rule(
        "pipeline-serves-the-model", "must", "A variant's pipeline is made for models of its task and architecture.",
        "Another one fails, or makes something that nobody can use.", "name another pipeline",
        of_recipe=_pipelines_serve_the_model,
    ),
    Rule(
        "licence-is-classified", "should", "The licence is in the table that `recipe ls --license CATEGORY` filters by.",
        "A misspelt one is found by nobody, and says nothing of what it allows.",
        "correct its name, or add it to runner/catalog/licences.py with its category",
        of_recipe=_licence_is_classified,
    ),
    Rule(
        "facts-are-stated", "must", "info.yml states parameters and download size, and the context of a model that reads text.",
        "Memory, disk and time are estimated from them.", "state it; 'recipe lint --online' tells what the hub says",
        of_recipe=_facts_are_stated, elsewhere="should",
    ),
    Rule(
        "facts-have-provenance", "must", "Every fact of the model says where it is from.",
        "A figure without a source cannot be checked.", "name its source under 'model.provenance'",
        of_recipe=_facts_have_provenance,
    ),
    Rule(
        "facts-are-checked", "should", "Every fact was compared with its source.",
        "What was copied from memory is wrong now and then.",
        "run 'recipe lint --online', then write the day under 'checked'",
        of_recipe=_facts_are_checked,
    ),
    Rule(
        "parameters-agree", "must", "Parameters are within 1 % of what the architecture has.",
        "Every estimate is wrong by the same factor otherwise.", "correct 'parameters', or the model's id",
        of_recipe=_parameters_agree,
    ),
    Rule(
        "facts-agree", "must", "Download size and number of parameters fit together.",
        "One of them is a typing error otherwise.", "check both against the model",
        of_recipe=_facts_agree, elsewhere="should",
    ),
    Rule(
        "tells-what-it-is", "should", "info.yml has a title and a summary.",
        "Listings and README.md show them.", "write them",
        of_recipe=_tells_what_it_is,
    ),
    Rule(
        "has-maintainers", "should", "Somebody answers for the recipe.",
        "CODEOWNERS asks them for reviews.", "name them under 'maintainers': @name on the forge",
        of_recipe=_has_maintainers,
    ),
    Rule(
        "is-reviewed", "should", "The recipe is past its draft.",
        "A draft has not been through its smoke run in CI.",
        "set 'lifecycle: {status: tested}' once every variant passes 'recipe run --smoke'",
        of_recipe=_is_reviewed,
    ),
    Rule(
        "origin-is-known", "should", "The recipe that this one was copied from is in the catalogue.",
        "`recipe diff ID` compares with it.", "correct 'origin.recipe'",
        of_recipe=_origin_is_known,
    ),
)  # fmt: skip
