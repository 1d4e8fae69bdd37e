"""A catalogue laid out as olive-recipes is: listed as far as it goes, and told what is wrong instead of refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.catalog.discover import list_entries
from runner.catalog.find import find
from runner.catalog.lint import lint
from runner.catalog.lint.subject import Catalogue
from runner.cli import cli, run_command
from runner.errors import Problem

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def _config(model: str = "Org/Model-1B", provider: str | None = CPU, precision: str = "int4", **more: Any) -> dict[str, Any]:
    device = "gpu" if provider == CUDA else "cpu"
    accelerator = {"device": device, "execution_providers": [provider]} if provider else {"device": device}
    return {
        "input_model": {"type": "HfModel", "model_path": model, "task": "text-generation"},
        "systems": {"local_system": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "passes": {"build": {"type": "ModelBuilder", "precision": precision}},
        "target": "local_system",
        **more,
    }


def _write(root: Path, folder: str, info: str, name: str = "info.yml", **configs: dict[str, Any]) -> Path:
    """Writes a folder with its info file and its configs, `a__b` standing for `a/b.json`."""
    place = root / folder
    place.mkdir(parents=True)
    (place / name).write_text(info, encoding="utf-8")
    for file, content in configs.items():
        path = place / f"{file.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return place


def _problems(root: Path, severity: str = "must") -> list[Problem]:
    checked = lint(Catalogue.at(root, cli))
    return [finding.problem for _, found in checked for finding in found if finding.severity == severity]


def _told(root: Path, severity: str = "must") -> list[tuple[str, int | None]]:
    return [(problem.rule, problem.place.line if problem.place else None) for problem in _problems(root, severity)]


def test_each_spelling_is_read(tmp_path: Path) -> None:
    _write(
        tmp_path, "Org-Model-1B/cpu",
        f"arch: llama\nrecipes:\n  - name: Model_cpu_int4\n    file: a.json\n    devices: cpu\n    eps: {CPU}\n",
        name="info.yaml", a=_config(),
    )  # fmt: skip
    _write(
        tmp_path, "Org-Model-1B/aitk",
        f"keywords:\n    aitk\narch: llama\nrecipes:\n  - file: b.json\n    device: gpu\n    ep: {CUDA}\n    aitk: {{x: 1}}\n"
        "aitk: {modelInfo: {id: huggingface/Org/Model-1B}}\n",
        b=_config(provider=CUDA, precision="fp16"),
    )  # fmt: skip
    _write(
        tmp_path, "Org-Other",
        f"arch: bert\ndevices: [gpu, cpu]\neps:\n  - {CUDA}\n  - {CPU}\nrecipes:\n  - name: o\n    file: sub/c.json\n",
        sub__c=_config("Org/Other"),
    )  # fmt: skip
    listing = list_entries(tmp_path)
    assert listing.problems == ()
    assert [entry.info.name for entry in listing.entries] == ["Org-Model-1B-aitk", "Org-Model-1B-cpu", "Org-Other"]
    variants = [[(one.name, one.device, one.ep, one.precision) for one in entry.info.recipes] for entry in listing.entries]
    assert variants == [
        [("b", "gpu", CUDA, "fp16")],
        [("Model_cpu_int4", "cpu", CPU, "int4")],
        [("o", "cpu", CPU, "int4")],
    ]
    model = listing.entries[0].info.model
    assert (model.id, model.task, model.parameters, model.licence) == ("Org/Model-1B", "text-generation", None, "unknown")
    assert _problems(tmp_path) == []


def test_recipe_of_it_can_be_found_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, "Org-Model/cpu", f"recipes:\n  - {{name: small, file: a.json, ep: {CPU}}}\n", a=_config())
    found = find("Org-Model-cpu/small", tmp_path)
    assert (found.id, found.config.name, found.trusted) == ("Org-Model-cpu", "a.json", False)
    assert run_command(["--catalog", str(tmp_path), "ls"]) == 0
    assert "Org-Model-cpu" in capsys.readouterr().out
    assert run_command(["--catalog", str(tmp_path), "show", "Org-Model-cpu"]) == 0


def test_older_forms_of_systems_are_read(tmp_path: Path) -> None:
    older = _config(provider=None)
    del older["systems"]
    older["target"] = {"type": "LocalSystem", "config": {"accelerators": [{"device": "gpu", "execution_providers": [CUDA]}]}}
    older["input_model"] = {"type": "HfModel", "config": {"hf_config": {"model_name": "Org/Older", "task": "text-generation"}}}
    _write(tmp_path, "Org-Older/cuda", "recipes:\n  - {name: a, file: a.json}\n", a=older)
    (entry,) = list_entries(tmp_path).entries
    assert entry.info.model.id == "Org/Older"
    assert (entry.info.recipes[0].device, entry.info.recipes[0].ep) == ("gpu", CUDA)


def test_configs_that_nothing_lists_are_found_beside(tmp_path: Path) -> None:
    _write(
        tmp_path, "Org-Model/builtin", f"keywords:\n    x\nep:\n    {CPU}\n    {CUDA}\nname: y\n",
        cpu__text=_config(), cuda__text=_config(provider=CUDA), notes={"no": "config"},
    )  # fmt: skip
    (entry,) = list_entries(tmp_path).entries
    assert [(one.name, one.ep) for one in entry.info.recipes] == [("cpu-text", CPU), ("cuda-text", CUDA)]
    assert _told(tmp_path) == [("lists-recipes", 1), ("lists-are-lists", 3)]


def test_what_is_wrong_is_told_at_its_line(tmp_path: Path) -> None:
    _write(
        tmp_path, "Org-Model/mixed",
        "keywords:\n    one\n    two\nrecipes:\n"
        "  - file: README.md\n    ep: CPUExecutionProvider\n"
        "  - name: same\n    file: a.json\n    device: gpu\n    ep: CUDAExecutonProvider\n"
        "  - name: same\n    file: gone.json\n    device: tpu\n    ep: PyTorch\n"
        "  - name: out\n    file: ../../x.json\n    device: cpu\n    ep: CPUExecutionProvider\n"
        "  - 7\n",
        a=_config(provider=None),
    )  # fmt: skip
    assert _told(tmp_path) == [
        ("files-exist", 12),
        ("files-exist", 16),
        ("paths-stay-inside", 16),
        ("lists-recipes", 5),
        ("lists-recipes", 19),
        ("lists-are-lists", 1),
        ("providers-are-known", 10),
        ("providers-are-known", 14),
        ("providers-are-known", 13),
    ]
    near = [problem.remedy for problem in _problems(tmp_path) if problem.rule == "providers-are-known"]
    assert near == ["did you mean 'CUDAExecutionProvider'?", "write it as ONNX Runtime does", "did you mean 'npu'?"]
    hints = {rule for rule, _ in _told(tmp_path, "should")}
    assert {"facts-are-stated", "licence-is-stated", "names-architecture", "recipes-are-told-apart"} <= hints


def test_only_configs_for_our_targets_are_read_as_ours(tmp_path: Path) -> None:
    unknown = _config(passes={"convert": {"type": "OpenVINOConvertion"}})
    _write(
        tmp_path, "Org-Model/openvino",
        f"recipes:\n  - {{name: a, file: a.json, ep: QNNExecutionProvider}}\n  - {{name: b, file: b.json, ep: {CPU}}}\n",
        a=unknown, b=unknown,
    )  # fmt: skip
    problems = [problem for problem in _problems(tmp_path) if problem.rule == "config-loads"]
    assert [Path(problem.place.file).name for problem in problems if problem.place] == ["b.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "keywords: [\n",
        "7\n",
        "keywords: 3\nrecipes: {a: b}\n",
        "recipes:\n  - {file: [a]}\n",
        "a: &x [*x]\n",
        "\x00",
    ],
    ids=["empty", "list", "not YAML", "number", "mapping of recipes", "odd file", "cycle", "binary"],
)
def test_file_that_says_nothing_is_reported_and_hides_no_other(tmp_path: Path, text: str) -> None:
    _write(tmp_path, "Org-Good", f"arch: llama\nrecipes:\n  - {{name: a, file: a.json, ep: {CPU}}}\n", a=_config())
    _write(tmp_path, "Org-Bad", text)
    listing = list_entries(tmp_path)
    assert [entry.info.name for entry in listing.entries] == ["Org-Good"]
    assert listing.problems
    problems = _problems(tmp_path)
    assert problems and all("Org-Bad" in str(problem.place) for problem in problems)


def test_folder_of_recipes_is_linted_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, "Org-Model/cpu", f"arch: llama\nrecipes:\n  - {{name: a, file: a.json, ep: {CPU}}}\n", a=_config())
    assert run_command(["lint", str(tmp_path)]) == 0
    assert "1 recipe checked, 0 to mend" in capsys.readouterr().out
    assert run_command(["--catalog", str(tmp_path), "lint"]) == 0
    (tmp_path / "Org-Model" / "cpu" / "a.json").unlink()
    assert run_command(["lint", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "files-exist: there is no 'a.json'" in out


def test_our_own_info_without_its_facts_stays_ours(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "family/mine",
        f"name: mine\narch: llama\ntitle: Mine\nrecipes:\n  - {{name: a, file: a.json, device: cpu, ep: {CPU}}}\n",
    )
    assert [problem.rule for problem in _problems(tmp_path)] == ["missing-key"]
