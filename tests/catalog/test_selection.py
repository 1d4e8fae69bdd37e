"""Which variants a change, a spread and a shard select."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from runner.catalog.discover import list_entries
from runner.catalog.selection import MOST_OF_A_TEMPLATE, Candidate, Selection, affected, candidates_of, shard, spread
from runner.errors import UsageError
from runner.templating.clone import Clone

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = list_entries(ROOT / "recipes").entries
ALL = candidates_of(ENTRIES)
RESNET = "recipes/resnet/resnet-50"


def of(*names: str) -> Selection:
    return affected([ROOT / name for name in names], ENTRIES, Clone(ROOT))


def ids(candidates: tuple[Candidate, ...] | list[Candidate]) -> list[str]:
    return [one.id for one in candidates]


def folders(selection: Selection) -> set[str]:
    return {folder.name for folder in selection.folders}


def test_a_spread_covers_every_architecture_and_pipeline() -> None:
    chosen = spread(ALL)
    wanted = {feature for one in ALL for feature in one.features}
    assert {feature for one in chosen for feature in one.features} == wanted
    pipelines = {feature for feature in wanted if feature.startswith("pipeline")}
    assert len(pipelines) <= len(chosen) <= len(wanted)
    assert len(chosen) < len(ALL) / 4


def test_a_spread_is_always_the_same() -> None:
    shuffled = list(ALL)
    random.Random(7).shuffle(shuffled)
    assert ids(spread(shuffled)) == ids(spread(ALL))


def test_shards_are_all_of_it_once() -> None:
    parts = [shard(ALL, f"{part}/8") for part in range(1, 9)]
    assert sorted(one for part in parts for one in ids(part)) == ids(ALL)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "half", "1", "-1/8"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bad-shard"):
        shard(ALL, text)


def test_facts_of_a_recipe_bear_on_all_its_variants() -> None:
    selection = of(f"{RESNET}/info.yml")
    assert ids(selection.candidates) == [one.id for one in ALL if one.entry.info.name == "resnet-50"]
    assert folders(selection) == {"resnet-50"}


def test_a_script_bears_on_all_variants_and_a_config_on_its_own() -> None:
    assert len(of(f"{RESNET}/user_script.py").candidates) == 4
    assert ids(of(f"{RESNET}/olive_config.cuda-fp16.json").candidates) == ["resnet-50/cuda-fp16"]


@pytest.mark.parametrize("name", ["README.md", "requirements.txt", "results/host.cpu-fp32.json", "recipe.lock.json"])
def test_what_a_run_does_not_read_is_only_linted(name: str) -> None:
    selection = of(f"{RESNET}/{name}")
    assert selection.candidates == ()
    assert folders(selection) == {"resnet-50"}


def test_a_template_bears_on_every_variant_of_its_pipeline() -> None:
    selection = of("templates/pipelines/vision-cpu-fp32.json.j2")
    assert ids(selection.candidates) == [one.id for one in ALL if one.variant.pipeline == "vision-cpu-fp32"]
    assert len(selection.folders) == len(ENTRIES)


def test_of_a_template_with_many_variants_a_spread_is_run() -> None:
    users = [one for one in ALL if one.variant.pipeline == "genai-cpu-int4"]
    assert len(users) > MOST_OF_A_TEMPLATE
    rendered = [one.config.relative_to(ROOT).as_posix() for one in users]
    selection = of("templates/pipelines/genai-cpu-int4.json.j2", *rendered)
    assert ids(selection.candidates) == ids(spread(users))


@pytest.mark.parametrize("name", ["runner/passes/table.py", "templates/pipelines/parts.j2", "constraints/cpu.txt"])
def test_what_every_run_depends_on_brings_the_spread(name: str) -> None:
    selection = of(name)
    assert ids(selection.candidates) == ids(spread(ALL))
    assert name in selection.why[0]


def test_pages_bring_a_look_at_the_pages_only() -> None:
    selection = of("docs/engine.md")
    assert (selection.folders, selection.candidates, selection.documents) == ((), (), True)


def test_what_concerns_no_recipe_brings_nothing() -> None:
    selection = of("tests/test_docs.py")
    assert (selection.folders, selection.candidates, selection.documents) == ((), (), False)
