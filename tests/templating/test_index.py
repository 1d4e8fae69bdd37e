"""The pages about the whole catalogue: recipes/README.md and .github/CODEOWNERS."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from runner.catalog.discover import list_entries
from runner.cli import run_command
from runner.errors import InvalidRecipe
from runner.templating.clone import Clone, clone_of
from runner.templating.codeowners import render_codeowners
from runner.templating.index import render_index
from runner.templating.pages import render_pages

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("smollm/smollm2-135m-instruct", "resnet/resnet-50", "phi/phi-4", "phi/phi-4-mini-instruct")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone of four recipes."""
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    for recipe in RECIPES:
        shutil.copytree(ROOT / "recipes" / recipe, tmp_path / "recipes" / recipe)
    return clone_of(tmp_path / "recipes")


def _index(clone: Clone) -> str:
    return render_index(list_entries(clone.root / "recipes").entries, clone).content.decode()


def _change(clone: Clone, recipe: str, old: str, new: str) -> None:
    info = clone.root / "recipes" / recipe / "info.yml"
    text = info.read_text(encoding="utf-8")
    assert old in text
    info.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_index_has_a_table_a_family(clone: Clone) -> None:
    text = _index(clone)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Phi", "ResNet", "SmolLM"]
    assert "[Phi](#phi) (2) ·\n[ResNet](#resnet) (1) ·\n[SmolLM](#smollm) (1)\n" in text
    assert "4 models in " in text
    assert "The classic convolutional network for classifying pictures." in text
    rows = {row.split("](")[0].removeprefix("| ["): row for row in text.splitlines() if row.startswith("| [")}
    assert list(rows) == ["phi-4", "phi-4-mini-instruct", "resnet-50", "smollm2-135m-instruct"]
    assert rows["resnet-50"] == ("| [resnet-50](resnet/resnet-50) | 25.6M | Apache-2.0 | fp32, int8 | fp16 | fp16 | not yet |")
    assert "| model | parameters | licence | CPU | CUDA | measured |" in text  # SmolLM's, which is not made for DirectML


def test_index_tells_the_fastest_variant_that_was_measured(clone: Clone) -> None:
    row = next(line for line in _index(clone).splitlines() if line.startswith("| [smollm2"))
    results = clone.root / "recipes" / RECIPES[0] / "results"
    ratios = {}
    for path in results.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        ratios[content["variant"]] = next(one["ratio"]["value"] for one in content["rows"] if one["name"] == "decode")
    fastest = max(ratios, key=lambda variant: ratios[variant])
    assert re.search(rf"\| `{fastest}`‡?: decode {ratios[fastest]:.2f}x†, size ", row)
    shutil.rmtree(results)
    assert next(line for line in _index(clone).splitlines() if line.startswith("| [smollm2")).endswith("| not yet |")


def test_links_of_the_index_lead_to_folders_and_headings(clone: Clone) -> None:
    text = _index(clone)
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.removeprefix("#") in anchors if target.startswith("#") else (clone.root / "recipes" / target).is_dir()


def test_index_marks_what_is_deprecated_or_gated(clone: Clone) -> None:
    _change(clone, "phi/phi-4", "lifecycle: {status: tested}", "lifecycle: {status: deprecated, reason: old}")
    _change(clone, "resnet/resnet-50", "gated: false", "gated: true")
    text = _index(clone)
    assert "| [phi-4](phi/phi-4) (deprecated) |" in text
    assert "| Apache-2.0, gated |" in text


def test_family_that_nobody_introduced_is_called_as_its_folder(clone: Clone) -> None:
    (clone.root / "recipes" / "phi").rename(clone.root / "recipes" / "other")
    assert "## other\n\n| model |" in _index(clone)


def test_families_file_that_is_wrong_is_told_with_its_place(clone: Clone) -> None:
    families = clone.templates / "recipe" / "families.yml"
    for text, rule in (("phi: [", "bad-yaml"), ("phi: Phi\n", "bad-value"), ("phi: {titel: Phi}\n", "bad-value")):
        families.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidRecipe) as caught:
            _index(clone)
        (problem,) = caught.value.problems
        assert problem.rule == rule
        assert problem.place is not None and problem.place.file == str(families)


def test_every_family_of_the_catalogue_is_introduced() -> None:
    told = yaml.safe_load((ROOT / "templates" / "recipe" / "families.yml").read_text(encoding="utf-8"))
    assert set(told) == {entry.family for entry in list_entries(ROOT / "recipes").entries}
    assert all(one["title"] and one["line"] for one in told.values())


def test_code_owners_are_the_maintainers(clone: Clone) -> None:
    maintained = 'maintainers: ["@onnx-recipes/maintainers"]'
    _change(clone, "phi/phi-4", maintained, 'maintainers: ["@somebody", "@org/team"]')
    _change(clone, "resnet/resnet-50", f"{maintained}\n", "")
    (clone.root / "recipes" / "smollm").rename(clone.root / "recipes" / "small [ones]")
    rendering = render_codeowners(list_entries(clone.root / "recipes").entries, clone)
    assert rendering.path == clone.root / ".github" / "CODEOWNERS"
    lines = [line for line in rendering.content.decode().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "* @onnx-recipes/maintainers",
        "/recipes/phi/phi-4-mini-instruct/ @onnx-recipes/maintainers",
        "/recipes/phi/phi-4/ @somebody @org/team",
        "/recipes/small\\ \\[ones\\]/smollm2-135m-instruct/ @onnx-recipes/maintainers",
    ]


def test_pages_are_those_of_the_clones_own_catalogue(clone: Clone, tmp_path: Path) -> None:
    entries = list_entries(clone.root / "recipes").entries
    names = [page.path.relative_to(tmp_path).as_posix() for page in render_pages(clone.root / "recipes", entries, clone)]
    assert names == ["recipes/README.md", ".github/CODEOWNERS"]
    assert render_pages(clone.root / "recipes" / "phi", entries, clone) == []


def test_render_writes_the_pages_and_finds_them_changed(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = ["--catalog", str(clone.root / "recipes")]
    assert run_command(["render", *catalogue]) == 0
    assert f"wrote {clone.root / 'recipes' / 'README.md'}" in capsys.readouterr().out
    assert run_command(["render", "--check", *catalogue]) == 0
    page = clone.root / "recipes" / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace("ResNet", "Resnet"), encoding="utf-8")
    capsys.readouterr()
    assert run_command(["render", "--check", *catalogue]) == 2
    assert "+## ResNet" in capsys.readouterr().out
    assert run_command(["render", "phi-4", *catalogue]) == 0  # one recipe's line is in the pages, too
    assert "## ResNet" in page.read_text(encoding="utf-8")
