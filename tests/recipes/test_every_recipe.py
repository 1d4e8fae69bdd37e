"""Every recipe of the catalogue: loads, is rendered, follows the rules, names true facts. The disk says which there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.catalog.discover import Entry, list_entries
from runner.catalog.find import find
from runner.catalog.lint import lint_folder
from runner.catalog.lint.subject import Catalogue
from runner.cli import cli
from runner.passes.table import options_of
from runner.recipe.info import Variant
from runner.recipe.load import load_config
from runner.targets.target import target_of
from runner.templating.clone import clone_of
from runner.templating.recipe import render_recipe, requirements_file, targets_of

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "recipes"
LISTING = list_entries(CATALOG)
CATALOGUE = Catalogue.at(CATALOG, cli)
VARIANTS = [
    pytest.param(entry, variant, id=f"{entry.info.name}-{variant.name}")
    for entry in LISTING.entries
    for variant in entry.info.recipes
]
ENTRIES = [pytest.param(entry, id=entry.info.name) for entry in LISTING.entries]
CALIBRATION = "sample_data/calibration.txt"
CALIBRATED = [pytest.param(entry, id=entry.info.name) for entry in LISTING.entries if (entry.folder / CALIBRATION).is_file()]


def test_every_info_is_valid() -> None:
    assert LISTING.problems == ()
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2", "bert-base-uncased", "resnet-50"} <= {
        one.info.name for one in LISTING.entries
    }


@pytest.mark.parametrize("entry", ENTRIES)
def test_follows_the_rules(entry: Entry) -> None:
    findings = lint_folder(CATALOGUE, entry.file)
    assert [str(finding.problem) for finding in findings if finding.severity == "must"] == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_is_as_rendered(entry: Entry) -> None:
    renderings = render_recipe(entry.folder, entry.family, entry.info, clone_of(entry.folder))
    assert [rendering.difference() for rendering in renderings if rendering.difference()] == []


@pytest.mark.parametrize(("entry", "variant"), VARIANTS)
def test_loads_without_notes(entry: Entry, variant: Variant) -> None:
    found = find(f"{entry.info.name}/{variant.name}", CATALOG)
    loaded = load_config([found.config], options_of)
    assert loaded.notes == ()
    assert loaded.config.passes
    assert target_of(loaded.config.system(loaded.config.target)).provider == variant.ep


@pytest.mark.parametrize("entry", CALIBRATED)
def test_calibration_and_evaluation_share_no_line(entry: Entry) -> None:
    judged = entry.info.evaluation.sentences or entry.info.evaluation.text
    assert judged is not None
    ours = {line for line in (entry.folder / CALIBRATION).read_text(encoding="utf-8").splitlines() if line.strip()}
    assert not ours & set((entry.folder / judged).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("entry", ENTRIES)
def test_requirements_bring_the_runner_from_the_clone(entry: Entry) -> None:
    for target in targets_of(entry.info):
        text = (entry.folder / requirements_file(target)).read_text(encoding="utf-8")
        (way,) = re.findall(r"^-e (\S+)$", text, re.MULTILINE)
        assert (entry.folder / way).resolve() == ROOT  # pip takes it from the current folder, which is the recipe's
