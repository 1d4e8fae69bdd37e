"""Conditions on recipes and their variants: what `recipe ls` narrows its list by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from runner.catalog.facts import Facts, VariantFacts
from runner.catalog.licences import CATEGORIES, meant_by
from runner.catalog.names import compact, did_you_mean_one_of, nearest_names, variant_key
from runner.errors import UsageError

Measure = Callable[[Facts, VariantFacts], float | None]


@dataclass(frozen=True)
class Condition:
    """Something that a variant of a recipe must be.

    Attributes:
        text: the condition as it was typed.
        holds: whether a variant of a recipe fulfils it.
    """

    text: str
    holds: Callable[[Facts, VariantFacts], bool]


def select(listed: Iterable[Facts], conditions: Sequence[Condition]) -> list[Facts]:
    """Returns the recipes with a variant that fulfils every condition, each with only these variants."""
    chosen = []
    for facts in listed:
        variants = tuple(one for one in facts.variants if all(condition.holds(facts, one) for condition in conditions))
        if variants:
            chosen.append(facts if len(variants) == len(facts.variants) else replace(facts, variants=variants))
    return chosen


def alone_excluding(listed: Sequence[Facts], conditions: Sequence[Condition]) -> Iterator[tuple[Condition, list[Facts]]]:
    """Yields each condition without which there would be matches, and these."""
    for condition in conditions:
        without = select(listed, [other for other in conditions if other is not condition])
        if without:
            yield condition, without


def by_word(word: str) -> Condition:
    """Returns the condition that a word stands in a recipe's names, or begins a word of what describes it."""
    return Condition(word, lambda facts, _: _is_found(word, facts))


def _is_found(word: str, facts: Facts) -> bool:
    names = (facts.name, *facts.aliases, facts.model, facts.title, facts.family)
    key = compact(word)
    if any(word.lower() in name.lower() or (key and key in compact(name)) for name in names):
        return True
    told = (facts.summary, *facts.keywords, facts.arch, facts.task, *(variant.name for variant in facts.variants))
    return re.search(rf"(?<!\w){re.escape(word)}", " ".join(told), re.IGNORECASE) is not None


def corrected(word: str, listed: Sequence[Facts]) -> str | None:
    """Returns the word itself where a recipe has it, the nearest that one has, or None where none is near."""
    if any(_is_found(word, facts) for facts in listed):
        return word
    near = nearest_names(word, {known for facts in listed for known in _vocabulary(facts)}, most=1)
    return near[0] if near else None


def _vocabulary(facts: Facts) -> Iterator[str]:
    yield from (facts.name, *facts.aliases, facts.model.rpartition("/")[2].lower(), facts.family, facts.arch, *facts.keywords)
    yield from facts.name.split("-")


def by_task(asked: str, listed: Sequence[Facts]) -> Condition:
    """Returns the condition on the task.

    Raises:
        UsageError: no recipe has it.
    """
    task = _one_of("task", asked, (facts.task for facts in listed))
    return Condition(f"--task {asked}", lambda facts, _: facts.task.lower() == task)


def by_family(asked: str, listed: Sequence[Facts]) -> Condition:
    """Returns the condition on the family.

    Raises:
        UsageError: there is no such family.
    """
    family = _one_of("family", asked, (facts.family for facts in listed))
    return Condition(f"--family {asked}", lambda facts, _: facts.family.lower() == family)


def by_target(asked: str, provider: str) -> Condition:
    """Returns the condition that a variant is made for an execution provider."""
    return Condition(f"--target {asked}", lambda _, variant: variant.provider == provider)


def by_precision(asked: str, listed: Sequence[Facts]) -> Condition:
    """Returns the condition on the precision, or on precision and scheme together, such as ``int8-static-qdq``.

    Raises:
        UsageError: no variant has it.
    """
    wanted = _one_of(
        "precision", asked, (one for facts in listed for variant in facts.variants for one in _precisions(variant))
    )
    return Condition(f"--precision {asked}", lambda _, variant: wanted in _precisions(variant))


def _precisions(variant: VariantFacts) -> set[str]:
    scheme = variant_key(variant.name).partition("-")[2]
    return {one for one in ((variant.precision or "").lower(), scheme) if one}


def by_licence(asked: str, listed: Sequence[Facts]) -> Condition:
    """Returns the condition on the licence: its category, or a part of its name.

    Raises:
        UsageError: this is no category, and no recipe has such a licence.
    """
    there = {facts.licence for facts in listed}
    if there and asked.lower() not in CATEGORIES and not any(meant_by(asked, name) for name in there):
        near = nearest_names(asked, {*CATEGORIES, *there})
        offer = f"{did_you_mean_one_of(near)} " if near else ""
        told = f"{offer}categories: {', '.join(CATEGORIES)}; licences: {', '.join(sorted(there))}"
        raise UsageError("unknown-licence", f"no recipe has the licence '{asked}', and it is no category", told)
    return Condition(f"--license {asked}", lambda facts, _: meant_by(asked, facts.licence))


def by_gating(gated: bool) -> Condition:
    """Returns the condition that the hub asks to accept the licence, or does not."""
    return Condition("--gated" if gated else "--not-gated", lambda facts, _: facts.gated is gated)


def by_measured(measured: bool) -> Condition:
    """Returns the condition that there are results of a variant, or none."""
    return Condition("--measured" if measured else "--not-measured", lambda _, variant: variant.measured is measured)


def by_deprecation(deprecated: bool) -> Condition:
    """Returns the condition that a recipe is deprecated, or is not."""
    text = "--deprecated" if deprecated else "--not-deprecated"
    return Condition(text, lambda facts, _: (facts.deprecated is not None) is deprecated)


def at_most(text: str, size: float, measure: Measure) -> Condition:
    """Returns the condition that something of a variant, in bytes, is known and not above a size."""

    def fits(facts: Facts, variant: VariantFacts) -> bool:
        measured = measure(facts, variant)
        return measured is not None and measured <= size

    return Condition(text, fits)


def download_bytes(facts: Facts, _: VariantFacts) -> float | None:
    """Returns what making a variant downloads: the source model's weights, in bytes."""
    return None if facts.download_mb is None else facts.download_mb * 1e6


def _one_of(facet: str, asked: str, values: Iterable[str]) -> str:
    """The value in lower case, where it is one of those that there are."""
    known = {value for value in values if value}
    if known and asked.lower() not in {value.lower() for value in known}:
        near = nearest_names(asked, known)
        offer = f"{did_you_mean_one_of(near)} " if near else ""
        raise UsageError(
            f"unknown-{facet}", f"no recipe has the {facet} '{asked}'", f"{offer}there are {', '.join(sorted(known))}"
        )
    return asked.lower()
