"""What the forge runs: the files are well formed, and what they call exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from runner.cli import cli

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SETUP = ROOT / ".github" / "actions" / "setup" / "action.yml"


def _read(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def _steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in _read(path)["jobs"].items():
            assert job["timeout-minutes"] <= 120
            yield from ((f"{path.name} {name}", step) for step in job["steps"])
    yield from (("setup", step) for step in _read(SETUP)["runs"]["steps"])


STEPS = list(_steps())


def _commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yields where a program is called, and the words after it, up to a pipe."""
    for where, step in STEPS:
        for line in step.get("run", "").splitlines():
            words = shlex.split(line.partition(" | ")[0])
            if words and words[0] == program:
                yield where, words[1:]


def test_workflows_may_only_read() -> None:
    assert WORKFLOWS
    for path in WORKFLOWS:
        assert _read(path)["permissions"] == {"contents": "read"}, path.name


def test_actions_are_pinned_or_here() -> None:
    for where, step in STEPS:
        used = step.get("uses")
        if used is None:
            continue
        here = used.startswith("./") and (ROOT / used / "action.yml").is_file()
        assert here or re.fullmatch(r"actions/[\w-]+@v\d+", used), f"{where}: {used}"


def test_expressions_reach_the_shell_through_variables_only() -> None:
    """A branch's name in a command line would be executed."""
    assert not [where for where, step in STEPS if "${{" in step.get("run", "")]


def test_pushes_start_no_runner_of_the_repositorys_own() -> None:
    for path in WORKFLOWS:
        for name, job in _read(path)["jobs"].items():
            own = "self-hosted" in job["runs-on"]
            assert not own or re.fullmatch(r"inputs\.\w+", job["if"]), f"{path.name} {name}"
            if own:
                started = _read(path)[True]["workflow_dispatch"]["inputs"]  # YAML reads the key `on` as true
                assert started[job["if"].removeprefix("inputs.")]["default"] is False


def test_what_starts_a_workflow_is_there() -> None:
    for path in WORKFLOWS:
        for event in ("push", "pull_request"):
            for pattern in ((_read(path)[True] or {}).get(event) or {}).get("paths", ()):
                assert list(ROOT.glob(pattern.replace("/**", "/**/*"))), f"{path.name}: {pattern}"


def test_packages_are_kept_by_the_lock_of_the_target() -> None:
    asked = _read(SETUP)["runs"]["steps"][0]["with"]["cache-dependency-path"]
    found = re.fullmatch(r"constraints/\$\{\{ (.+) \}\}\.txt", asked)
    assert found
    choices = re.findall(r"contains\(inputs\.extras, '(\w+)'\) && '(\w+)'", found[1])
    assert choices == [("directml", "directml"), ("cuda", "cuda")]
    assert found[1].endswith("|| 'cpu'")
    for where, step in STEPS:
        extras = step.get("with", {}).get("extras", "cpu,dev")
        chosen = next((lock for word, lock in choices if word in extras), "cpu")
        assert chosen == next(one for one in extras.split(",") if one in ("cpu", "cuda", "directml")), where


def test_the_instructions_for_windows_are_what_its_workflow_does() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```powershell\n(.+?)```", page, re.DOTALL)
    told = [shlex.split(line.partition("#")[0], posix=False) for line in block.splitlines()]
    job = _read(ROOT / ".github" / "workflows" / "gpu.yml")["jobs"]["directml"]
    assert job["runs-on"] == "windows-latest"
    done = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    setup, activate, *rest = told
    (asked,) = [step["with"]["extras"] for step in job["steps"] if "extras" in step.get("with", {})]
    assert setup == ["python", "scripts/bootstrap.py", "--extras", asked]
    assert "python scripts/bootstrap.py --extras" in _read(SETUP)["runs"]["steps"][1]["run"]
    assert activate == [r".venv\Scripts\activate"]
    for words in rest:
        assert any(one[: len(words)] == words for one in done), words
    assert any("scripts/provider_share.py" in words for words in done)


def test_inputs_of_the_setup_exist() -> None:
    known = _read(SETUP)["inputs"]
    for where, step in STEPS:
        if step.get("uses") == "./.github/actions/setup":
            assert set(step.get("with", {})) <= set(known), where
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = [step["with"]["extras"] for _, step in STEPS if "extras" in step.get("with", {})] + [known["extras"]["default"]]
    for texts in asked:
        assert set(texts.split(",")) <= set(extras)


@pytest.mark.parametrize(("where", "words"), list(_commands("recipe")))
def test_recipe_commands_exist(where: str, words: list[str]) -> None:
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, f"{where}: recipe {words[0]}"
    told = [word.replace("$BASE", "main").replace("$SHARD", "1/2") for word in words[1:]]
    command.make_context(words[0], told, parent=click.Context(cli))  # raises where an option or a value is none that is taken


def test_scripts_and_make_targets_exist() -> None:
    for where, words in _commands("python"):
        assert words[0] == "-m" or (ROOT / words[0]).is_file(), f"{where}: {words[0]}"
        script = "" if words[0] == "-m" else (ROOT / words[0]).read_text(encoding="utf-8")
        for flag in (word for word in words[1:] if words[0] != "-m" and word.startswith("--")):
            assert f'add_argument("{flag}"' in script, f"{where}: {words[0]} {flag}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for where, words in _commands("make"):
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), f"{where}: make {words[0]}"


def test_shards_are_all_run() -> None:
    smoke = _read(ROOT / ".github" / "workflows" / "nightly.yml")["jobs"]["smoke"]
    shards = smoke["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1))
    assert smoke["env"]["SHARD"].endswith(f"/{len(shards)}")
