"""What a word on the command line leads to, and which folder is the catalogue."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.catalog.discover import catalog_root, info_files, list_entries, list_facts
from runner.catalog.find import find, find_entry, named_variant
from runner.errors import InvalidRecipe, UsageError

Maker = Callable[..., Path]
OWN = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _no_catalog_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECIPE_CATALOG", raising=False)


def test_catalogue_is_asked_for_or_in_the_environment_or_above_or_beside_the_runner(
    make_recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_recipe("one")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert catalog_root(tmp_path / "recipes") == tmp_path / "recipes"
    assert catalog_root() == tmp_path / "recipes"  # found above the current folder
    monkeypatch.chdir(folder)
    assert catalog_root() == tmp_path / "recipes"
    monkeypatch.setenv("RECIPE_CATALOG", str(OWN))
    assert catalog_root() == OWN
    monkeypatch.delenv("RECIPE_CATALOG")
    monkeypatch.chdir(tmp_path.anchor)
    assert catalog_root() == OWN


def test_catalogue_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        catalog_root(tmp_path / "nothing")


def test_walk_skips_what_is_no_recipe(make_recipe: Maker, tmp_path: Path) -> None:
    folder = make_recipe("one")
    for name in (".hidden", "node_modules", "__pycache__"):
        (tmp_path / "recipes" / name).mkdir()
        (tmp_path / "recipes" / name / "info.yml").write_text("x: 1", encoding="utf-8")
    (folder / "nested").mkdir()
    (folder / "nested" / "info.yml").write_text("x: 1", encoding="utf-8")
    other = make_recipe("two", family="deep/er")
    (other / "info.yml").rename(other / "info.yaml")
    assert [file.parent.name for file in info_files(tmp_path / "recipes")] == ["two", "one"]
    assert [(entry.info.name, entry.family) for entry in list_entries(tmp_path / "recipes").entries] == [
        ("one", "family"),
        ("two", "deep/er"),
    ]


def test_broken_info_does_not_hide_the_others(make_recipe: Maker, tmp_path: Path) -> None:
    make_recipe("good")
    broken = make_recipe("broken") / "info.yml"
    broken.write_text(broken.read_text(encoding="utf-8").replace("licence:", "license:"), encoding="utf-8")
    listing = list_entries(tmp_path / "recipes")
    assert [entry.info.name for entry in listing.entries] == ["good"]
    assert [problem.rule for problem in listing.problems] == ["missing-key", "unknown-key"] or {
        problem.rule for problem in listing.problems
    } == {"missing-key", "unknown-key"}
    unknown = next(problem for problem in listing.problems if problem.rule == "unknown-key")
    assert str(unknown.place) == f"{broken}:9"
    assert unknown.remedy == "did you mean 'licence'?"


@pytest.mark.parametrize(
    ("word", "variant", "config"),
    [
        ("one", None, "olive_config.json"),
        ("one", "cuda-fp16", "olive_config.cuda-fp16.json"),
        ("one/cuda-fp16", None, "olive_config.cuda-fp16.json"),
        ("family/one", None, "olive_config.json"),
        ("family/one/cuda-fp16", None, "olive_config.cuda-fp16.json"),
        ("recipes/family/one", None, "olive_config.json"),
        ("./recipes/family/one", "cuda-fp16", "olive_config.cuda-fp16.json"),
        ("recipes/family/one/info.yml", None, "olive_config.json"),
        ("recipes/family/one/olive_config.cuda-fp16.json", None, "olive_config.cuda-fp16.json"),
        ("ONE", None, "olive_config.json"),
        ("one.cuda.fp16", None, "olive_config.cuda-fp16.json"),
        ("family/one.gpu.fp16", None, "olive_config.cuda-fp16.json"),
        ("one/CUDA_fp16", None, "olive_config.cuda-fp16.json"),
        ("one", "cuda.fp16", "olive_config.cuda-fp16.json"),
        ("Organisation/One", None, "olive_config.json"),
        ("organisation/one/cuda-fp16", None, "olive_config.cuda-fp16.json"),
    ],
)
def test_find(
    make_recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, variant: str | None, config: str
) -> None:
    make_recipe("one")
    make_recipe("other")
    monkeypatch.chdir(tmp_path)
    found = find(word, variant=variant)
    assert found.config.name == config
    assert found.folder.resolve() == tmp_path / "recipes" / "family" / "one"
    assert found.info is not None and found.variant is not None
    assert found.variant.file == config
    assert found.slug == f"one-{found.variant.name}"
    assert not found.trusted


def test_no_word_is_the_current_folder(make_recipe: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_recipe("one"))
    assert find(None).id == "one"


def test_current_folders_own_name_wins_and_needs_no_catalogue(
    make_recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "elsewhere" / "one"
    shutil.copytree(make_recipe("one"), alone)
    monkeypatch.chdir(alone)
    for word, variant in (("one", "cpu-int4"), ("one/cuda-fp16", "cuda-fp16")):
        found = find(word, tmp_path / "recipes")
        assert found.folder.resolve() == alone
        assert found.variant is not None and found.variant.name == variant
    assert find_entry("one", tmp_path / "recipes").folder.resolve() == alone
    monkeypatch.setattr("runner.catalog.discover.OWN_CATALOG", tmp_path / "nothing")
    shutil.rmtree(tmp_path / "recipes")
    assert find("one/cuda-fp16").config.name == "olive_config.cuda-fp16.json"
    with pytest.raises(UsageError) as caught:
        find("two")
    assert caught.value.problems[0].remedy == "name a recipe folder or a config file, or use --catalog DIR"


def test_entry_is_found_before_its_configs_are_rendered(make_recipe: Maker, tmp_path: Path) -> None:
    folder = make_recipe("one")
    (folder / "olive_config.json").unlink()
    for word in ("one", str(folder), str(folder / "info.yml")):
        entry = find_entry(word, tmp_path / "recipes")
        assert (entry.info.name, entry.family) == ("one", "family")


def test_neighbours_of_a_missing_path_are_configs_and_recipes(tmp_path: Path) -> None:
    for name in (".git", ".hidden.json", "picture.png", "settings.yml"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        find(str(tmp_path / "nowhere.json"))
    assert caught.value.problems[0].remedy == "known: settings.yml"


def test_text_that_is_too_long_for_a_path_is_an_unknown_recipe(make_recipe: Maker, tmp_path: Path) -> None:
    make_recipe("one")
    with pytest.raises(UsageError, match="unknown-recipe"):
        find("a long story " * 1000, tmp_path / "recipes")


def test_config_without_info_belongs_to_no_recipe(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text("{}", encoding="utf-8")
    found = find(str(config))
    assert (found.info, found.variant, found.id, found.trusted) == (None, None, "mine", False)


def test_own_catalogue_is_trusted() -> None:
    assert find("smollm2-135m-instruct", OWN).trusted


@pytest.mark.parametrize(
    ("word", "rule", "remedy"),
    [
        ("onee", "unknown-recipe", "did you mean 'one'?"),
        ("onee/cuda-fp61", "unknown-recipe", "did you mean 'one/cuda-fp16'?"),
        ("onee.cpu.int4", "unknown-recipe", "did you mean 'one/cpu-int4'?"),
        ("organization/one", "unknown-recipe", "did you mean 'one'?"),
        ("something else", "unknown-recipe", "'recipe ls' lists what there is"),
        ("one.cuda.fp61", "unknown-variant", "did you mean 'cuda-fp16'?"),
        ("one/cuda-fp61", "unknown-variant", "did you mean 'cuda-fp16'?"),
        ("recipes/family", "not-a-recipe", "name a recipe folder"),
        ("./recipes/family/one/olive_confg.json", "no-such-path", "did you mean 'olive_config.json'?"),
    ],
)
def test_what_is_not_there_is_an_error_with_the_nearest_name(
    make_recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, rule: str, remedy: str
) -> None:
    make_recipe("one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find(word)
    assert caught.value.problems[0].rule == rule
    assert remedy in str(caught.value.problems[0].remedy)


def test_a_finished_model_is_told_from_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="is a finished model, not a recipe") as caught:
        find(str(tmp_path))
    assert "'recipe bench'" in str(caught.value.problems[0].remedy)


def test_config_that_leaves_its_folder_is_refused(make_recipe: Maker, tmp_path: Path) -> None:
    info = make_recipe("one") / "info.yml"
    (tmp_path / "outside.json").write_text("{}", encoding="utf-8")
    info.write_text(info.read_text(encoding="utf-8").replace("olive_config.json", "../../../outside.json"), encoding="utf-8")
    with pytest.raises(InvalidRecipe, match="path-leaves-folder"):
        find("one", tmp_path / "recipes")


def test_two_variants_at_once_are_refused(make_recipe: Maker, tmp_path: Path) -> None:
    make_recipe("one")
    with pytest.raises(UsageError, match="two-variants"):
        find("one/cpu-int4", tmp_path / "recipes", "cuda-fp16")


def test_alias_leads_to_its_recipe_unless_a_folder_has_the_name(make_recipe: Maker, tmp_path: Path) -> None:
    folder = make_recipe("one")
    make_recipe("other")
    info = folder / "info.yml"
    info.write_text("aliases: [short-1.5, other]\n" + info.read_text(encoding="utf-8"), encoding="utf-8")
    assert find("Short-1.5", tmp_path / "recipes").id == "one"
    assert find("short-1.5.cuda.fp16", tmp_path / "recipes").slug == "one-cuda-fp16"
    assert find("other", tmp_path / "recipes").id == "other"


def test_targets_are_spelt_in_both_ways(make_recipe: Maker, tmp_path: Path) -> None:
    info = make_recipe("one") / "info.yml"
    text = info.read_text(encoding="utf-8").replace("name: cuda-fp16", "name: dml-fp16")
    info.write_text(text.replace("CUDAExecutionProvider", "DmlExecutionProvider"), encoding="utf-8")
    for word in ("one/directml-fp16", "one/dml-fp16", "one.directml.fp16", "one.DML.fp16"):
        assert find(word, tmp_path / "recipes").slug == "one-dml-fp16"


def test_variant_that_a_word_says(make_recipe: Maker, tmp_path: Path) -> None:
    folder = make_recipe("one")
    for word in ("one/cuda-fp16", "one.gpu.fp16", str(folder / "olive_config.cuda-fp16.json")):
        variant = named_variant(word, tmp_path / "recipes")
        assert variant is not None and variant.name == "cuda-fp16"
    for word in ("one", "family/one", str(folder), str(folder / "info.yml")):
        assert named_variant(word, tmp_path / "recipes") is None
    with pytest.raises(UsageError, match="unknown-variant"):
        named_variant("one/cuda-fp61", tmp_path / "recipes")


def test_name_of_several_recipes_is_not_guessed(make_recipe: Maker, tmp_path: Path) -> None:
    make_recipe("one")
    make_recipe("one", family="copies")
    mine = make_recipe("mine", family="copies") / "info.yml"
    mine.write_text(mine.read_text(encoding="utf-8").replace("organisation/mine", "organisation/one"), encoding="utf-8")
    for word in ("one", "organisation/one"):
        with pytest.raises(UsageError, match="ambiguous-name") as caught:
            find(word, tmp_path / "recipes")
        assert "copies/one, family/one" in str(caught.value.problems[0].remedy).replace("copies/mine, ", "")
    assert find("copies/one", tmp_path / "recipes").folder == tmp_path / "recipes" / "copies" / "one"


def test_folder_that_has_the_name_is_found_among_broken_ones(make_recipe: Maker, tmp_path: Path) -> None:
    make_recipe("one")
    (make_recipe("broken") / "info.yml").write_text("name: [", encoding="utf-8")
    assert find("one/cuda-fp16", tmp_path / "recipes").slug == "one-cuda-fp16"


def test_facts_are_those_of_the_whole_file(make_recipe: Maker, tmp_path: Path) -> None:
    folder = make_recipe("one", licence="Apache-2.0")
    (folder / "results").mkdir()
    (folder / "results" / "host.cpu-int4.json").write_text("{}", encoding="utf-8")
    (facts,), problems = list_facts(tmp_path / "recipes")
    assert problems == []
    (entry,) = list_entries(tmp_path / "recipes").entries
    assert (facts.name, facts.family, facts.folder) == (entry.info.name, entry.family, entry.folder)
    assert (facts.licence, facts.download_mb, facts.gated) == ("Apache-2.0", 2.0, False)
    assert [(one.name, one.target, one.precision, one.measured) for one in facts.variants] == [
        ("cpu-int4", "cpu", "int4", True),
        ("cuda-fp16", "cuda", "fp16", False),
    ]


def test_spellings_of_olive_recipes_are_listed_too(make_recipe: Maker, tmp_path: Path) -> None:
    info = make_recipe("one") / "info.yml"
    text = info.read_text(encoding="utf-8").replace("device: gpu", "devices: [gpu]")
    info.write_text(text.replace("ep: CUDAExecutionProvider", "eps: [CUDAExecutionProvider]"), encoding="utf-8")
    (facts,), problems = list_facts(tmp_path / "recipes")
    assert problems == []
    assert [one.target for one in facts.variants] == ["cpu", "cuda"]


def test_sixty_recipes_are_listed_fast(make_recipe: Maker, tmp_path: Path) -> None:
    for number in range(60):
        make_recipe(f"model-{number:02}")
    list_entries(tmp_path / "recipes")
    started = time.process_time()
    assert len(list_entries(tmp_path / "recipes").entries) == 60
    assert time.process_time() - started < 0.5  # some 50 ms on a quiet machine
