"""Each rule finds what it is for, at the right line, and nothing in a good recipe."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.catalog.lint import RULES, lint, lint_folder
from runner.catalog.lint.rule import Finding
from runner.catalog.lint.subject import Catalogue
from runner.cli import cli
from runner.passes import table
from runner.passes.record import settings_digest

ROOT = Path(__file__).resolve().parents[2]
MINILM = Path("recipes/minilm/all-minilm-l6-v2")
STATIC = "olive_config.cpu-int8-static-qdq.json"
EXPECTED_HINTS = {"is-measured", "facts-are-checked", "results-are-of-today"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Returns a clone with one recipe of the catalogue, its templates and locks."""
    for name in ("templates", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / MINILM, tmp_path / MINILM)
    return tmp_path


def _findings(clone: Path) -> list[Finding]:
    catalogue = Catalogue.at(clone / "recipes", cli)
    return [finding for _, found in lint(catalogue) for finding in found if finding.problem.rule not in EXPECTED_HINTS]


def _found(clone: Path) -> list[tuple[str, str]]:
    """(rule, file name:line) of everything found, but for the hints that the good recipe gives."""
    problems = [finding.problem for finding in _findings(clone)]
    return [(one.rule, re.sub(r".*/", "", str(one.place).replace("\\", "/"))) for one in problems]


def _edit(path: Path, old: str, new: str) -> int:
    """Replaces the first `old` and returns its line."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def _edit_info(clone: Path, old: str, new: str) -> str:
    """Replaces the first `old` in info.yml and returns its file:line."""
    return f"info.yml:{_edit(clone / MINILM / 'info.yml', old, new)}"


def _other_recipe(clone: Path, name: str = "other") -> Path:
    """Adds a second recipe, equal to the first but for its name, and returns its folder."""
    folder = clone / "recipes" / "minilm" / name
    shutil.copytree(clone / MINILM, folder)
    _edit(folder / "info.yml", "name: all-minilm-l6-v2", f"name: {name}")
    return folder


def test_good_recipe_has_no_findings(clone: Path) -> None:
    assert _found(clone) == []


def test_misspelt_key_of_info(clone: Path) -> None:
    line = _edit_info(clone, "keywords:", "keyword:")
    assert _found(clone) == [("unknown-key", line)]


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("task: feature-extraction", "task: feature-extracton", "feature-extraction"),
        ('cosine: ">= 0.9999"', 'cosin: ">= 0.9999"', "cosine"),
        ("quantize: {nodes", "quantise: {nodes", "quantize"),
        ("pipeline: encoder-cpu-fp32", "pipeline: encodr-cpu-fp32", "encoder-cpu-fp32"),
    ],
    ids=["task", "gate", "setting", "pipeline"],
)
def test_misspelt_name_that_nothing_would_read(clone: Path, old: str, new: str, near: str) -> None:
    line = _edit_info(clone, old, new)
    named = next(finding.problem for finding in _findings(clone) if finding.problem.rule == "names-are-known")
    assert str(named.place).endswith(line)
    assert named.remedy == f"did you mean '{near}'?"


def test_folder_outside_the_catalogue_is_linted(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = tmp_path_factory.mktemp("alone") / "all-minilm-l6-v2"
    shutil.copytree(clone / MINILM, alone, ignore=shutil.ignore_patterns("models", "__pycache__"))
    for requirements in alone.glob("requirements*.txt"):
        text = requirements.read_text("utf-8")
        text = re.sub(r"^-e .*$", "onnx-recipes @ git+https://example.org/it", text, flags=re.MULTILINE)
        requirements.write_text(text, encoding="utf-8")
    for root in (clone / "recipes", None):
        ((folder, findings),) = lint(Catalogue.at(root, cli), [alone])
        assert folder == alone
        assert {finding.problem.rule for finding in findings} <= EXPECTED_HINTS


def test_name_that_is_not_the_folders(clone: Path) -> None:
    line = _edit_info(clone, "name: all-minilm-l6-v2", "name: minilm")
    assert ("name-is-folder", line) in _found(clone)


def test_names_and_aliases_that_another_recipe_has(clone: Path) -> None:
    other = _other_recipe(clone)
    _edit_info(clone, "arch: bert", "aliases: [minilm, Other]\narch: bert")
    _edit(other / "info.yml", "arch: bert", "aliases: [MiniLM]\narch: bert")
    found = [place for rule, place in _found(clone) if rule == "names-are-unique"]
    assert found == ["info.yml:3", "info.yml:3", "info.yml:2", "info.yml:3"]


def test_variant_whose_name_hides_target_and_precision(clone: Path) -> None:
    line = _edit_info(clone, "name: cuda-fp16", "name: gpu-half")
    assert [place for rule, place in _found(clone) if rule == "variants-are-named"] == [line, line]


def test_variants_with_equal_configs(clone: Path) -> None:
    shutil.copy(clone / MINILM / "olive_config.json", clone / MINILM / STATIC)
    found = [one.problem for one in _findings(clone) if one.problem.rule == "variants-differ"]
    assert [problem.cause for problem in found] == [
        "cpu-int8-static-qdq makes the same model as cpu-fp32: their configs are equal"
    ]


def test_setting_that_the_pipeline_says_itself(clone: Path) -> None:
    line = _edit_info(clone, "quantize: {nodes_to_exclude: [", "quantize: {per_channel: true, nodes_to_exclude: [")
    (problem,) = [one.problem for one in _findings(clone) if one.problem.rule == "settings-say-something"]
    assert str(problem.place).endswith(line)
    assert "quantize.per_channel" in problem.cause


def test_missing_files(clone: Path) -> None:
    (clone / MINILM / STATIC).unlink()
    (clone / MINILM / "sample_data" / "sentences.txt").unlink()
    rules = [rule for rule, _ in _found(clone)]
    assert rules.count("files-exist") == 2
    assert "is-rendered" in rules


def test_path_that_leads_out(clone: Path) -> None:
    line = _edit_info(clone, "sentences: sample_data/sentences.txt", "sentences: ../../../constraints/cpu.txt")
    assert ("paths-stay-inside", line) in _found(clone)


def test_config_with_an_unknown_option(clone: Path) -> None:
    line = _edit(clone / MINILM / STATIC, '"per_channel"', '"per_chanel"')
    found = _found(clone)
    assert ("config-loads", f"{STATIC}:{line}") in found
    assert ("is-rendered", f"{STATIC}:{line}") in found


def test_config_that_names_another_model_and_provider(clone: Path) -> None:
    path = clone / MINILM / "olive_config.json"
    model = _edit(path, "sentence-transformers/all-MiniLM-L6-v2", "somebody/else")
    _edit(path, "CPUExecutionProvider", "CUDAExecutionProvider")
    found = _found(clone)
    assert ("config-agrees", f"olive_config.json:{model}") in found
    assert [rule for rule, _ in found].count("config-agrees") == 2


def test_precision_that_the_target_cannot_run(clone: Path) -> None:
    line = _edit_info(clone, "precision: int8", "precision: bf16")
    assert ("precision-is-legal", line) in _found(clone)


def test_template_that_was_changed(clone: Path) -> None:
    _edit(clone / "templates" / "pipelines" / "encoder-cpu-int8-static.json.j2", '"MinMax"', '"Entropy"')
    found = _found(clone)
    rendered = {(rule, place.partition(":")[0]) for rule, place in found}
    assert rendered == {("is-rendered", STATIC), ("is-rendered", "README.md")}  # its results are of other options now


def test_template_with_an_error(clone: Path) -> None:
    line = _edit(
        clone / "templates" / "pipelines" / "encoder-cpu-fp32.json.j2", "{% endcall %}", "{{ info.nothing }}\n{% endcall %}"
    )
    assert _found(clone) == [("is-rendered", f"encoder-cpu-fp32.json.j2:{line}")]


def test_requirement_that_is_not_the_tested_one(clone: Path) -> None:
    path = clone / MINILM / "requirements.txt"
    other = _edit(path, "numpy==", "numpy==1.")
    loose = _edit(path, "safetensors==", "safetensors>=")
    unknown = _edit(path, "onnxscript==", "onnxscrypt==")
    problems = {
        str(one.problem.place): one.problem for one in _findings(clone) if one.problem.rule == "requirements-are-pinned"
    }
    assert set(problems) == {f"{path}:{line}" for line in (other, loose, unknown)}
    assert problems[f"{path}:{unknown}"].remedy == "did you mean 'onnxscript'?"
    assert "constraints/cpu.txt" in problems[f"{path}:{other}"].cause


def test_target_without_its_requirements(clone: Path) -> None:
    (clone / MINILM / "requirements.cuda.txt").unlink()
    (problem,) = [one.problem for one in _findings(clone) if one.problem.rule == "requirements-are-pinned"]
    assert "requirements.cuda.txt" in problem.cause


def test_lock_that_was_moved_on(clone: Path) -> None:
    _edit(clone / "constraints" / "directml.txt", "onnxruntime-directml==", "onnxruntime-directml==9.")
    assert {place.partition(":")[0] for rule, place in _found(clone) if rule == "requirements-are-pinned"} == {
        "requirements.directml.txt"
    }


def test_sample_data_without_licence(clone: Path) -> None:
    (clone / MINILM / "sample_data" / "more.txt").write_text("text", encoding="utf-8")
    assert ("sample-data-is-licensed", "README.md") in _found(clone)
    (clone / MINILM / "sample_data" / "README.md").unlink()
    assert ("sample-data-is-licensed", "sample_data") in _found(clone)


def test_sample_data_that_is_large(clone: Path) -> None:
    (clone / MINILM / "sample_data" / "sentences.txt").write_bytes(b"a\n" * 3_000_000)
    assert ("sample-data-is-small", "sample_data") in _found(clone)


def test_calibration_on_what_judges(clone: Path) -> None:
    folder = clone / MINILM / "sample_data"
    judged = (folder / "sentences.txt").read_text(encoding="utf-8").splitlines()
    with (folder / "calibration.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{judged[0].upper()}\n{judged[3]}\n")
    (problem,) = [one.problem for one in _findings(clone) if one.problem.rule == "data-is-kept-apart"]
    assert "share 2 of" in problem.cause


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("licence: Apache-2.0", "licence: unknown", "licence-is-stated"),
        ("id: sentence-transformers/all-MiniLM-L6-v2", "id: meta-llama/Llama-3.2-1B", "licence-is-stated"),
        ("parameters: 22713216", "parameters: null", "facts-are-stated"),
        ("context_length: 512", "# no context", "facts-are-stated"),
        ("    gated: {source: hub}\n", "", "facts-have-provenance"),
        ("parameters: 22713216", "parameters: 23713216", "parameters-agree"),
        ("download_mb: 90.9", "download_mb: 9090", "facts-agree"),
        ("title: all-MiniLM-L6-v2\n", "", "tells-what-it-is"),
        ('maintainers: ["@onnx-recipes/maintainers"]\n', "", "has-maintainers"),
        ("@onnx-recipes", "onnx-recipes", "has-maintainers"),
        ("lifecycle: {status: tested}\n", "", "is-reviewed"),
        ('    gates:\n      cosine: ">= 0.9999"\n', "", "has-gates"),
        ("model:\n", "origin: {recipe: nobodys, digest: abc}\nmodel:\n", "origin-is-known"),
    ],
)
def test_facts_that_are_wrong_or_missing(clone: Path, old: str, new: str, rule: str) -> None:
    if rule == "origin-is-known":
        _other_recipe(clone)
    _edit_info(clone, old, new)
    assert rule in [found for found, _ in _found(clone)]


def test_parameters_are_told_with_those_of_the_architecture(clone: Path) -> None:
    line = _edit_info(clone, "parameters: 22713216", "parameters: 33713216")
    problem = next(one.problem for one in _findings(clone) if one.problem.rule == "parameters-agree")
    assert str(problem.place).endswith(line)
    assert "22,713,216 (+48.4%)" in problem.cause


def test_script_that_is_a_copy(clone: Path) -> None:
    lines = ["import json", *(f"def stage_{number}():\n    return {number}" for number in range(6))]
    other = _other_recipe(clone)
    (clone / MINILM / "user_script.py").write_text('"""One."""\n\n' + "\n".join(lines), encoding="utf-8")
    (other / "user_script.py").write_text("# another comment\n" + "\n\n".join(lines[:-1]), encoding="utf-8")
    assert [place for rule, place in _found(clone) if rule == "script-is-its-own"] == ["user_script.py:1"] * 2
    _edit(other / "info.yml", "model:\n", "origin: {recipe: all-minilm-l6-v2, digest: abc}\nmodel:\n")
    assert "script-is-its-own" not in [rule for rule, _ in _found(clone)]


def test_results_of_something_else(clone: Path) -> None:
    path = clone / MINILM / "results" / "amd-epyc-2c.cpu-fp32.json"
    line = _edit(path, '"variant": "cpu-fp32"', '"variant": "cpu-fp23"')
    found = _found(clone)
    assert ("results-are-valid", f"{path.name}:{line}") in found
    path.write_text("{", encoding="utf-8")
    assert ("results-are-valid", path.name) in _found(clone)


def test_result_that_misses_its_gate(clone: Path) -> None:
    path = clone / MINILM / "results" / "amd-epyc-2c.cpu-int8-dynamic.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    row = next(row for row in content["rows"] if row["name"] == "cosine")
    row["optimised"]["value"] = 0.4321
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    line = next(number for number, text in enumerate(path.read_text("utf-8").splitlines(), start=1) if "0.4321" in text)
    assert ("results-meet-gates", f"{path.name}:{line}") in _found(clone)
    path.write_text(json.dumps({**content, "weights": "random"}, indent=2), encoding="utf-8")
    assert "results-meet-gates" not in [rule for rule, _ in _found(clone)]


def test_results_of_older_passes_are_a_hint(clone: Path) -> None:
    path = clone / MINILM / "results" / "amd-epyc-2c.cpu-int8-dynamic.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    config = json.loads((clone / MINILM / "olive_config.cpu-int8-dynamic.json").read_text(encoding="utf-8"))
    now = {step["type"]: table.get(step["type"]).version for step in config["passes"].values()}

    def told(passes: dict[str, int] | None) -> list[str]:
        recorded = {**content, "passes": passes, "settings": settings_digest(config)}
        path.write_text(json.dumps(recorded, indent=2), encoding="utf-8")
        found = lint_folder(Catalogue.at(clone / "recipes", cli), clone / MINILM / "info.yml")
        ours = [one for one in found if one.problem.rule == "results-are-of-today"]
        assert {one.severity for one in ours} <= {"should"}
        return [one.problem.cause for one in ours if one.problem.place and one.problem.place.file == str(path)]

    assert told(now) == []
    assert told({**now, "OnnxConversion": now["OnnxConversion"] - 1}) == [
        f"measured with OnnxConversion {now['OnnxConversion'] - 1} (now {now['OnnxConversion']})"
    ]
    assert told(None) == ["measured with unknown passes"]


def test_every_rule_is_unique_and_complete() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.what and rule.why and rule.fix and (rule.severity or rule.elsewhere) for rule in RULES)


def test_recipe_written_by_hand_is_linted_too(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_recipe("mine")
    catalogue = Catalogue.at(tmp_path / "recipes", cli)
    rules = {finding.problem.rule for finding in lint_folder(catalogue, folder / "info.yml")}
    assert "is-rendered" not in rules
    assert {"readme-has-commands", "sample-data-is-licensed", "requirements-are-pinned"} <= rules


def test_a_name_like_a_variants_is_refused(clone: Path) -> None:
    folder = _other_recipe(clone, "all-minilm-l6-v2.cpu.int8")
    assert ("names-are-readable", "info.yml:2") in [
        (finding.problem.rule, re.sub(r".*/", "", str(finding.problem.place)))
        for finding in lint_folder(Catalogue.at(clone / "recipes", cli), folder / "info.yml")
    ]


def test_a_licence_that_nobody_knows_is_a_hint(clone: Path) -> None:
    place = _edit_info(clone, "licence: Apache-2.0", "licence: Bogus-9")
    assert ("licence-is-classified", place) in _found(clone)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("arch: bert", "arch: martian", "architecture-agrees"),
        ("context_length: 512", "context_length: 999", "architecture-agrees"),
        ("licence: Apache-2.0", "licence: MIT", "licence-is-stated"),
        ("gated: false", "gated: true", "licence-is-stated"),
        ("pipeline: encoder-cpu-fp32", "pipeline: whisper-cpu-fp32", "pipeline-serves-the-model"),
    ],
)
def test_a_fact_that_is_known_better_is_named(clone: Path, old: str, new: str, rule: str) -> None:
    place = _edit_info(clone, old, new)
    named = [found for found in _found(clone) if found[0] == rule]
    assert named and (rule == "pipeline-serves-the-model" or named == [(rule, place)])
