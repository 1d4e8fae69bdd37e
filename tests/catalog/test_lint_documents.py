"""Commands and links of documentation: each that would fail a reader is told with its line and the nearest name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runner.catalog.lint import lint_clone, lint_folder
from runner.catalog.lint.markdown import read_page
from runner.catalog.lint.subject import Catalogue
from runner.cli import cli
from runner.errors import Problem

ROOT = Path(__file__).resolve().parents[2]
MINILM = Path("recipes/minilm/all-minilm-l6-v2")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Returns a clone with one recipe and empty documentation."""
    for name in ("templates", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / MINILM, tmp_path / MINILM)
    (tmp_path / "docs").mkdir()
    return tmp_path


def _of_page(clone: Path, text: str, page: str = "README.md") -> list[Problem]:
    (clone / page).write_text(text, encoding="utf-8")
    problems = [finding.problem for finding in lint_clone(Catalogue.at(clone / "recipes", cli))]
    return [problem for problem in problems if problem.rule != "overviews-are-rendered"]


def test_a_template_that_makes_an_invalid_config_is_named_before_it_is_rendered(clone: Path) -> None:
    template = clone / "templates" / "pipelines" / "encoder-cpu-fp32.json.j2"
    text = template.read_text(encoding="utf-8").replace('"opt_level"', '"opt_levle"')
    template.write_text(text, encoding="utf-8")
    (problem,) = _of_page(clone, "# Title\n")
    assert problem.rule == "templates-are-valid"
    assert "has no 'opt_levle'" in problem.cause
    line = text[: text.index("opt_levle")].count("\n") + 1
    assert problem.place is not None and problem.place.file.endswith(template.name) and problem.place.line == line
    assert problem.remedy is not None and "opt_level" in problem.remedy


@pytest.mark.parametrize("name", ["all-minilm-l6-v2.cpu.int8-dynamic", "minilm/ALL-MINILM-L6-V2/directml-fp16"])
def test_every_spelling_of_a_name_is_understood(clone: Path, name: str) -> None:
    assert _of_command(clone, f"recipe show {name}") == []


def test_a_sentence_may_name_a_verb_alone(clone: Path) -> None:
    assert _of_page(clone, "# Title\n\n`recipe new` makes a folder.\n") == []
    assert [problem.rule for problem in _of_page(clone, "# Title\n\n`recipe nwe` makes a folder.\n")] == ["commands-are-valid"]


def _of_command(clone: Path, *lines: str, language: str = "bash") -> list[Problem]:
    """What is found in a page whose one block holds these lines, the first of which is the fourth of the page."""
    return _of_page(clone, "\n".join(["# Title", "", f"```{language}", *lines, "```", ""]))


@pytest.mark.parametrize(
    ("command", "cause", "fix"),
    [
        ("recipe rum all-minilm-l6-v2", "there is no verb 'rum'", "did you mean 'run'?"),
        ("recipe run all-minilm-l6-v2 --smok", "No such option", "did you mean '--smoke'?"),
        ("recipe run all-minilm-l6-v1", "there is no recipe 'all-minilm-l6-v1'", "did you mean 'all-minilm-l6-v2'?"),
        ("recipe run all-minilm-l6-v2/cpu-int8-dynamik", "has no variant 'cpu-int8-dynamik'", "did you mean 'cpu-int8"),
        ("recipe show all-minilm-l6-v2 --variant cpu-fp23", "has no variant 'cpu-fp23'", "did you mean 'cpu-fp32'?"),
        ("recipe run all-minilm-l6-v2 --target cudda", "there is no target 'cudda'", "did you mean 'cuda'?"),
        ("recipe run all-minilm-l6-v2 --threads many", "Invalid value for '--threads'", "correct the command"),
        ("recipe passes shw OnnxConversion", "No such command 'shw'", "correct the command"),
        ("recipe run --config recipes/nothing.json", "there is no file 'recipes/nothing.json'", "correct the command"),
        ("recipe run ./recipes/minilm/all-minilm", "there is no file", "did you mean 'all-minilm-l6-v2'?"),
        ("cd recipes/minilm/minilm", "there is no folder 'recipes/minilm/minilm'", "correct the command"),
        ("cd recipes && pip install -r requirement.txt", "there is no file 'requirement.txt'", "correct the command"),
        ("pip install -r constraints/cpus.txt", "there is no file 'constraints/cpus.txt'", "did you mean 'cpu.txt'?"),
        (f"cd {MINILM}; olive run --config olive_confg.json", "there is no file", "did you mean 'olive_config.json'?"),
        ("python scripts/demo.py", "there is no file 'scripts/demo.py'", "correct the command"),
        ('recipe try all-minilm-l6-v2 "never closed', "a shell cannot read", "correct the command"),
    ],
)  # fmt: skip
def test_command_that_would_fail(clone: Path, command: str, cause: str, fix: str) -> None:
    (problem,) = _of_command(clone, "recipe ls", command)
    assert (problem.rule, str(problem.place)) == ("commands-are-valid", f"{clone / 'README.md'}:5")
    assert cause in problem.cause
    assert problem.remedy is not None and problem.remedy.startswith(fix)


@pytest.mark.parametrize(
    "lines",
    [
        ("recipe ls bert --target cuda --precision int4   # what there is",),
        ("recipe run ID --smoke", "recipe run RECIPE/VARIANT", "recipe try all-minilm-l6-v2 PICTURE.png"),
        ("recipe run minilm/all-minilm-l6-v2/cuda-fp16", f"recipe lint {MINILM}"),
        (f"cd {MINILM}", "pip install -r requirements.cuda.txt", "olive run --config olive_config.json", "recipe run"),
        ("git clone ADDRESS onnx-recipes", "cd onnx-recipes", "pip install -r anything.txt"),
        ("$ recipe run all-minilm-l6-v2 \\", "$   --smoke", "recipe made a mess of this line, which is an answer"),
        ("recipe --help", "recipe run --help", "recipe passes --help", "recipe --version"),
        ("recipe run --config their_config.json", "recipe run --config <yours>.json", "recipe lint $CHECKOUT"),
        ("make test", "npm install", "some output: recipe"),
    ],
)  # fmt: skip
def test_command_that_works(clone: Path, lines: tuple[str, ...]) -> None:
    assert _of_command(clone, *lines) == []


def test_blocks_in_other_languages_are_no_commands(clone: Path) -> None:
    assert _of_command(clone, "recipe rum", language="json") == []


def test_commands_of_a_recipes_readme_run_in_its_folder(clone: Path) -> None:
    readme = clone / MINILM / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace("recipe run all-minilm-l6-v2/dml-fp16", "recipe run all-minilm-l6-v2/dml-fp61"), "utf-8")
    line = next(number for number, one in enumerate(readme.read_text("utf-8").splitlines(), start=1) if "fp61" in one)
    found = lint_folder(Catalogue.at(clone / "recipes", cli), clone / MINILM / "info.yml")
    problems = [finding.problem for finding in found if finding.problem.rule == "commands-are-valid"]
    assert [str(problem.place) for problem in problems] == [f"{readme}:{line}"]


def test_readme_without_the_usual_commands(clone: Path) -> None:
    (clone / MINILM / "README.md").write_text("# Nothing\n\n[here](nowhere.md)\n", encoding="utf-8")
    found = lint_folder(Catalogue.at(clone / "recipes", cli), clone / MINILM / "info.yml")
    rules = [finding.problem.rule for finding in found]
    assert rules.count("readme-has-commands") == 4
    assert rules.count("links-are-alive") == 1


@pytest.mark.parametrize(
    ("link", "fix"),
    [
        ("[a](docs/pagee.md)", "did you mean 'page.md'?"),
        ("[a](docs/page.md#a-heading)", "did you mean 'the-heading'?"),
        ("![a](docs/picture.svg)", "correct the link"),
        ("[a]: docs/other.txt", "correct the link"),
        ('<img src="docs/gone.svg">', "correct the link"),
        ("[a](#tittle)", "did you mean 'title'?"),
    ],
)
def test_link_that_leads_nowhere(clone: Path, link: str, fix: str) -> None:
    (clone / "docs" / "page.md").write_text("# The heading\n", encoding="utf-8")
    (problem,) = _of_page(clone, f"# Title\n\n{link}\n")
    assert (problem.rule, str(problem.place)) == ("links-are-alive", f"{clone / 'README.md'}:3")
    assert problem.remedy == fix


def test_links_that_lead_somewhere(clone: Path) -> None:
    (clone / "docs" / "page.md").write_text('## `recipe run`: how, and why?\n\n# Same\n\n# Same\n\n<a id="x"></a>\n', "utf-8")
    links = (
        "docs/page.md#recipe-run-how-and-why", "docs/page.md#same-1", "docs/page.md#x", "https://example.org/gone",
        "mailto:a@b.c", "recipes/", "docs/page.md 'a title'",
    )  # fmt: skip
    text = "".join(f"[a]({link})\n" for link in links) + "`[code](gone.md)`\n```text\n[block](gone.md)\n```\n"
    assert _of_page(clone, text) == []


def test_a_fence_is_closed_by_its_own_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("````bash\n```\nrecipe ls\n```\n````\n# Heading\n", encoding="utf-8")
    read = read_page(page)
    assert [block.lines for block in read.blocks] == [[(2, "```"), (3, "recipe ls"), (4, "```")]]
    assert read.anchors == {"heading"}
