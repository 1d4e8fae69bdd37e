"""Each rule finds what it is for, at the right line, and nothing in a good recipe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.catalog.lint import RULES, lint, lint_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Returns a clone with one recipe of the catalogue, its templates and locks."""
    for name in ("templates", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "recipes" / "minilm", tmp_path / "recipes" / "minilm")
    return tmp_path


def _folder(clone: Path) -> Path:
    return clone / "recipes" / "minilm" / "all-minilm-l6-v2"


def _found(clone: Path) -> list[tuple[str, str]]:
    """(rule, file name:line) of everything found, the missing results files left out."""
    findings = [finding.problem for _, found in lint(clone / "recipes") for finding in found]
    places = [(one.rule, re.sub(r".*/", "", str(one.place).replace("\\", "/"))) for one in findings]
    return [place for place in places if place[0] != "is-measured"]


def _edit(path: Path, old: str, new: str) -> int:
    """Replaces the first `old` and returns its line."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def test_good_recipe_has_no_findings(clone: Path) -> None:
    assert _found(clone) == []


def test_misspelt_key_of_info(clone: Path) -> None:
    line = _edit(_folder(clone) / "info.yml", "keywords:", "keyword:")
    assert _found(clone) == [("unknown-key", f"info.yml:{line}")]


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("task: feature-extraction", "task: feature-extracton", "feature-extraction"),
        ('cosine: ">= 0.9999"', 'cosin: ">= 0.9999"', "cosine"),
        ("peephole: {split", "peephol: {split", "peephole"),
        ("max_length: 128", "max_lenght: 128", "max_length"),
        ("pipeline: encoder", "pipeline: encodr", "encoder"),
    ],
    ids=["task", "gate", "setting", "inner setting", "pipeline"],
)
def test_misspelt_name_that_nothing_would_read(clone: Path, old: str, new: str, near: str) -> None:
    line = _edit(_folder(clone) / "info.yml", old, new)
    problems = [finding.problem for _, found in lint(clone / "recipes") for finding in found if finding.severity == "must"]
    named = next(problem for problem in problems if problem.rule == "names-are-known")
    assert str(named.place) == f"{_folder(clone) / 'info.yml'}:{line}"
    assert f"did you mean '{near}'?" in named.cause


def test_unknown_provider_is_told_with_the_nearest_and_not_with_all(clone: Path) -> None:
    line = _edit(_folder(clone) / "info.yml", "ep: CPUExecutionProvider", "ep: CPUExecutonProvider")
    (finding,) = [finding for _, found in lint(clone / "recipes") for finding in found]
    assert str(finding.problem.place).endswith(f"info.yml:{line}")
    assert finding.problem.remedy == "did you mean 'CPUExecutionProvider'?"
    assert len(finding.problem.cause) < 120


def test_folder_outside_the_catalogue_is_linted(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = tmp_path_factory.mktemp("alone") / "all-minilm-l6-v2"
    shutil.copytree(_folder(clone), alone, ignore=shutil.ignore_patterns("models", "__pycache__"))
    requirements = alone / "requirements.txt"
    text = re.sub(r"^-e .*$", "onnx-recipes @ git+https://example.org/it", requirements.read_text("utf-8"), flags=re.MULTILINE)
    requirements.write_text(text, encoding="utf-8")
    for root in (clone / "recipes", None):
        ((folder, findings),) = lint(root, [alone])
        assert folder == alone
        assert {finding.problem.rule for finding in findings} <= {"is-measured"}


def test_name_that_is_not_the_folders(clone: Path) -> None:
    line = _edit(_folder(clone) / "info.yml", "name: all-minilm-l6-v2", "name: minilm")
    assert ("name-is-folder", f"info.yml:{line}") in _found(clone)


def test_same_name_twice(clone: Path) -> None:
    shutil.copytree(_folder(clone), clone / "recipes" / "copies" / "all-minilm-l6-v2")
    assert [rule for rule, _ in _found(clone)].count("name-is-unique") == 2


def test_missing_files(clone: Path) -> None:
    (_folder(clone) / "olive_config.cpu-int8-static.json").unlink()
    (_folder(clone) / "sample_data" / "sentences.txt").unlink()
    rules = [rule for rule, _ in _found(clone)]
    assert rules.count("files-exist") == 2
    assert "is-rendered" in rules


def test_path_that_leads_out(clone: Path) -> None:
    line = _edit(_folder(clone) / "info.yml", "sentences: sample_data/sentences.txt", "sentences: ../../../constraints/cpu.txt")
    assert ("paths-stay-inside", f"info.yml:{line}") in _found(clone)


def test_config_with_an_unknown_option(clone: Path) -> None:
    line = _edit(_folder(clone) / "olive_config.cpu-int8-dynamic.json", '"per_channel"', '"per_chanel"')
    found = _found(clone)
    assert ("config-loads", f"olive_config.cpu-int8-dynamic.json:{line}") in found
    assert ("is-rendered", "olive_config.cpu-int8-dynamic.json") in found


def test_config_that_names_another_model_and_provider(clone: Path) -> None:
    path = _folder(clone) / "olive_config.json"
    model = _edit(path, "sentence-transformers/all-MiniLM-L6-v2", "somebody/else")
    _edit(path, "CPUExecutionProvider", "CUDAExecutionProvider")
    found = _found(clone)
    assert ("config-agrees", f"olive_config.json:{model}") in found
    assert [rule for rule, _ in found].count("config-agrees") == 2


def test_precision_that_the_target_cannot_run(clone: Path) -> None:
    _edit(_folder(clone) / "info.yml", "precision: int8", "precision: bf16")
    assert "precision-is-legal" in [rule for rule, _ in _found(clone)]


def test_requirement_that_is_not_the_tested_one(clone: Path) -> None:
    path = _folder(clone) / "requirements.txt"
    other = _edit(path, "numpy==", "numpy==1.")
    loose = _edit(path, "safetensors==", "safetensors>=")
    found = _found(clone)
    assert ("requirements-are-pinned", f"requirements.txt:{other}") in found
    assert ("requirements-are-pinned", f"requirements.txt:{loose}") in found


def test_readme_without_commands_and_with_a_dead_link(clone: Path) -> None:
    (_folder(clone) / "README.md").write_text("# Nothing\n\n[here](nowhere.md)\n", encoding="utf-8")
    found = _found(clone)
    assert [rule for rule, _ in found].count("readme-has-commands") == 4
    assert ("links-are-alive", "README.md:3") in found


def test_sample_data_without_licence(clone: Path) -> None:
    (_folder(clone) / "sample_data" / "more.txt").write_text("text", encoding="utf-8")
    assert ("sample-data-is-licensed", "README.md") in _found(clone)
    (_folder(clone) / "sample_data" / "README.md").unlink()
    assert ("sample-data-is-licensed", "sample_data") in _found(clone)


def test_sample_data_that_is_large(clone: Path) -> None:
    (_folder(clone) / "sample_data" / "sentences.txt").write_bytes(b"a\n" * 3_000_000)
    assert ("sample-data-is-small", "sample_data") in _found(clone)


def test_facts_that_do_not_fit(clone: Path) -> None:
    line = _edit(_folder(clone) / "info.yml", "download_mb: 90.9", "download_mb: 9090")
    assert ("facts-agree", f"info.yml:{line}") in _found(clone)


def test_variant_without_gate_and_recipe_without_title(clone: Path) -> None:
    path = _folder(clone) / "info.yml"
    _edit(path, '    gates:\n      cosine: ">= 0.9999"\n', "")
    _edit(path, "title: all-MiniLM-L6-v2\n", "")
    rules = [rule for rule, _ in _found(clone)]
    assert "has-gates" in rules
    assert "tells-what-it-is" in rules


def test_every_rule_is_unique_and_complete() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.what and rule.why and rule.fix and rule.severity in ("must", "should") for rule in RULES)


def test_recipe_written_by_hand_is_linted_too(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_recipe("mine")
    rules = {finding.problem.rule for finding in lint_folder(tmp_path / "recipes", folder / "info.yml", [folder])}
    assert "is-rendered" not in rules
    assert {"readme-has-commands", "sample-data-is-licensed", "requirements-are-pinned"} <= rules
