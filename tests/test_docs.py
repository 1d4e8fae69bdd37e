"""Documentation does not lie: links lead somewhere, commands exist, and nothing that is generated is stale."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from runner.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^(?:\$ )?recipe (?!=)(.+)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[1:] if word.startswith("--")} <= known, line


def test_nothing_names_a_private_place() -> None:
    hidden = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/")
    files = [
        path for folder in ("docs", "recipes", "templates", "constraints", ".github") for path in (ROOT / folder).rglob("*")
    ]
    named = [
        str(path.relative_to(ROOT))
        for path in [*files, *ROOT.glob("*.md")]
        if path.is_file()
        and path.suffix in (".md", ".yml", ".json", ".j2", ".txt", ".svg")
        and "models" not in path.parts
        and hidden.search(path.read_text(encoding="utf-8"))
    ]
    assert named == []
