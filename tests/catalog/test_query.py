"""Conditions hold for what they say, words are found as people type them, and licences have their categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runner.catalog.discover import list_facts
from runner.catalog.facts import Facts, VariantFacts
from runner.catalog.licences import CATEGORIES, UNCLASSIFIED, licence_named, meant_by
from runner.catalog.names import nearest_names, readings, variant_key
from runner.catalog.query import (
    Condition,
    alone_excluding,
    at_most,
    by_family,
    by_gating,
    by_licence,
    by_precision,
    by_target,
    by_task,
    by_word,
    corrected,
    download_bytes,
    select,
)
from runner.errors import UsageError

Maker = Callable[..., Path]
OWN = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def listed(make_recipe: Maker, tmp_path: Path) -> list[Facts]:
    make_recipe("chat-2.5-7b", family="llm", licence="Apache-2.0")
    make_recipe("mail", family="encoders", task="feature-extraction")
    return list_facts(tmp_path / "recipes")[0]


def _names(listed: Sequence[Facts], *conditions: Condition) -> list[str]:
    return [f"{facts.name}/{variant.name}" for facts in select(listed, conditions) for variant in facts.variants]


def test_conditions_narrow_recipes_and_variants(listed: list[Facts]) -> None:
    chat, mail = ["chat-2.5-7b/cpu-int4", "chat-2.5-7b/cuda-fp16"], ["mail/cpu-int4", "mail/cuda-fp16"]
    assert _names(listed) == [*mail, *chat]
    assert _names(listed, by_target("cuda", "CUDAExecutionProvider")) == [mail[1], chat[1]]
    assert _names(listed, by_precision("INT4", listed), by_family("LLM", listed)) == [chat[0]]
    assert _names(listed, by_task("feature-extraction", listed)) == mail
    assert _names(listed, by_licence("apache", listed)) == chat
    assert _names(listed, by_licence("permissive", listed)) == [*mail, *chat]
    assert _names(listed, by_licence("copyleft", listed)) == []
    assert _names(listed, by_gating(True)) == []
    assert _names(listed, by_word("ORGANISATION"), by_word("mai")) == mail
    assert _names(listed, by_target("directml", "DmlExecutionProvider")) == []


def test_sizes_that_nobody_knows_fit_nowhere(listed: list[Facts]) -> None:
    def memory(facts: Facts, variant: VariantFacts) -> float | None:
        return {"mail": 1e9}.get(facts.name) if variant.name == "cpu-int4" else None

    assert _names(listed, at_most("--max-memory 1GB", 1e9, memory)) == ["mail/cpu-int4"]
    assert _names(listed, at_most("--max-memory 0.9GB", 0.9e9, memory)) == []
    assert len(_names(listed, at_most("--max-download 2MB", 2e6, download_bytes))) == 4


def test_conditions_that_alone_exclude_everything(listed: list[Facts]) -> None:
    conditions = [by_word("chat"), by_task("feature-extraction", listed), by_precision("int4", listed)]
    excluding = [
        (condition.text, [facts.name for facts in without]) for condition, without in alone_excluding(listed, conditions)
    ]
    assert excluding == [("chat", ["mail"]), ("--task feature-extraction", ["chat-2.5-7b"])]


@pytest.mark.parametrize(
    ("word", "found"),
    [("chat2.5", "chat2.5"), ("chat 2.5 7b", "chat 2.5 7b"), ("caht", "chat"), ("encodres", "encoders"), ("qqqqqq", None)],
)
def test_words_are_taken_for_what_is_near(listed: list[Facts], word: str, found: str | None) -> None:
    assert corrected(word, listed) == found


@pytest.mark.parametrize(
    ("make", "asked", "remedy"),
    [
        (by_task, "text-generatoin", "did you mean 'text-generation'? there are feature-extraction, text-generation"),
        (by_family, "zzz", "there are encoders, llm"),
        (by_precision, "int8", "did you mean 'int4'? there are fp16, int4"),
        (by_licence, "apahce", "did you mean 'Apache-2.0'?"),
        (by_licence, "GPL-3.0", "categories: permissive, copyleft"),
    ],
)
def test_facet_that_no_recipe_has(
    listed: list[Facts], make: Callable[[str, Sequence[Facts]], Condition], asked: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make(asked, listed)
    assert remedy in str(caught.value.problems[0].remedy)
    assert make(asked, []).text.endswith(asked)  # an empty catalogue is no reason to call a value unknown


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("MIT", "permissive"),
        ("apache-2.0", "permissive"),
        ("llama3.2", "community"),
        ("Gemma", "community"),
        ("openrail++", UNCLASSIFIED),
        ("OpenRAIL++-M", "responsible-use"),
        ("Qwen-Research", "non-commercial"),
        ("A licence of my own", UNCLASSIFIED),
    ],
)
def test_licences_have_a_category(name: str, category: str) -> None:
    assert licence_named(name).category == category
    assert meant_by(category, name)
    assert meant_by(name[:5], name)


def test_every_licence_of_the_catalogue_is_classified() -> None:
    assert [facts.name for facts in list_facts(OWN)[0] if licence_named(facts.licence).category == UNCLASSIFIED] == []
    assert set(CATEGORIES) >= {licence_named(facts.licence).category for facts in list_facts(OWN)[0]}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("Phi-4", [("phi-4", None)]),
        ("phi-4/cpu-int4", [("phi-4/cpu-int4", None), ("phi-4", "cpu-int4")]),
        ("phi/phi-4/CPU.int4", [("phi/phi-4/cpu.int4", None), ("phi/phi-4", "cpu.int4")]),
        ("resnet-50.cpu.int8-static-qdq", [("resnet-50.cpu.int8-static-qdq", None), ("resnet-50", "cpu.int8-static-qdq")]),
        ("qwen2.5-7b", [("qwen2.5-7b", None)]),
        ("what is 2.5/3 of it?", [("what is 2.5/3 of it?", None)]),
    ],
)
def test_readings_of_a_word(word: str, meant: list[tuple[str, str | None]]) -> None:
    assert list(readings(word)) == meant


def test_spellings_of_a_variant_have_one_key() -> None:
    assert {variant_key(name) for name in ("dml-fp16", "directml-fp16", "DirectML.fp16", "DML_FP16")} == {"dml-fp16"}
    assert variant_key("gpu-int4-gptq") == variant_key("cuda.int4.gptq")
    assert variant_key("cpu-int4") != variant_key("cpu-int4-gptq")


def test_names_that_hold_the_word_are_nearest() -> None:
    known = ["phi-4", "phi-4-mini-instruct", "phi-4-mini-reasoning", "phi-3-mini", "resnet-50"]
    assert nearest_names("phi4mini", known) == ["phi-4-mini-instruct", "phi-4-mini-reasoning"]
    assert nearest_names("resnt", known) == ["resnet-50"]
    assert nearest_names("-", known) == []
