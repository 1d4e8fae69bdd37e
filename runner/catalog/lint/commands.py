"""The rules on commands: what documentation tells people to type works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from runner.catalog.lint.markdown import Block, Page
from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Catalogue, Subject
from runner.catalog.names import readings, variant_key
from runner.errors import Place, RecipeError, did_you_mean, nearest
from runner.recipe.info import Info

README_COMMANDS = ("pip install -r requirements", "recipe run", "recipe bench", "olive run --config")

_SHELLS = {"", "bash", "sh", "shell", "console", "powershell", "pwsh", "bat", "zsh"}
_SPEAKS_OF = {"recipe", "olive", "pip", "python", "cd", "git"}
_BETWEEN = {"&&", "||", ";", "|"}
_HELP = {"-h", "--help", "--version"}
# What stands for something of the reader's own: ID, MODEL/VARIANT, PICTURE.png, <name>, their-config.json, my-model.
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*([./-][A-Z0-9_]+)*(\.\w+)?|.*[<>$*…{].*|(.*/)?(their|your|my)[-_].*")
_IN_THE_CLONE = re.compile(r"(?:\./)?(?:recipes|sample_data|templates|constraints|docs|scripts|tests)/")
_MAKES_RECIPES = {"copy", "new"}
_QUOTED = re.compile(r"`(recipe [^`]+)`")
_CONFIG = re.compile(r".*\.(json|jsonc|ya?ml)", re.IGNORECASE)

Told = Iterator[tuple[str, str | None]]  # cause, fix


@dataclass
class _Scene:
    """Where the commands of a page run, one behind another.

    Attributes:
        commands: the command line's root.
        infos: recipes that a command may name.
        clone: root of the clone.
        folder: current folder; None where a command went to one that is not here, such as a clone still to be made.
        made: names of recipes that commands before have made.
    """

    commands: click.Group
    infos: Sequence[Info]
    clone: Path
    folder: Path | None
    made: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Says whether a file or folder is here, or cannot be looked for."""
        return self.folder is None or is_placeholder(name) or (self.folder / name).exists()

    def missing(self, name: str) -> Told:
        """Yields that the file is not here, with the nearest of those that are."""
        if self.folder is not None and not self.has(name):
            above = (self.folder / name).parent
            near = nearest(Path(name).name, [one.name for one in above.iterdir()] if above.is_dir() else [])
            yield f"there is no file '{name}'", f"did you mean '{near}'?" if near else None


def is_placeholder(word: str) -> bool:
    """Says whether a word stands for something of the reader's own, as `ID` or `PICTURE.png` do."""
    return _PLACEHOLDER.fullmatch(word) is not None


def _of_recipe(subject: Subject) -> Faults:
    infos = [subject.info, *(other.info for other in subject.catalogue.others(subject.folder))]
    root = subject.clone.root
    yield from _of_pages(subject.pages, subject.catalogue.commands, infos, root, subject.folder)


def _of_clone(catalogue: Catalogue) -> Faults:
    root = catalogue.clone.root
    yield from _of_pages(catalogue.pages, catalogue.commands, [entry.info for entry in catalogue.entries], root, root)


def _of_pages(pages: Iterable[Page], commands: click.Group, infos: Sequence[Info], clone: Path, folder: Path) -> Faults:
    for page in pages:
        scene = _Scene(commands, infos, clone, folder)
        for block in page.blocks:
            scene.folder = folder
            for number, line in _command_lines(block):
                place = Place(str(page.path), number)
                yield from (Fault(cause, place, fix) for cause, fix in dict.fromkeys(_of_line(line, scene)))
        scene.folder = None  # nobody says where what is quoted in a sentence is typed
        for number, line in page.prose:
            place = Place(str(page.path), number)
            for quoted in _QUOTED.findall(line):
                if _is_mention(quoted, commands):
                    continue
                yield from (Fault(cause, place, fix) for cause, fix in dict.fromkeys(_of_line(quoted, scene)))


def _is_mention(quoted: str, commands: click.Group) -> bool:
    """Says whether a sentence only names a verb that there is, without what it would be called with."""
    _, *verbs = quoted.split()
    return len(verbs) == 1 and commands.get_command(click.Context(commands), verbs[0]) is not None


def _command_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Yields (number, line) of a shell's commands: prompts taken off, answers left out, continued lines joined."""
    if block.language not in _SHELLS:
        return
    prompted = any(line.startswith("$ ") for _, line in block.lines)
    start, text = 0, ""
    for number, line in block.lines:
        if not text and prompted and not line.startswith("$ "):
            continue
        start, text = start if text else number, text + line.removeprefix("$ ").strip()
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        if text.split(" ", 1)[0] in _SPEAKS_OF:
            yield start, text
        text = ""


def _of_line(line: str, scene: _Scene) -> Told:
    reader = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    reader.whitespace_split = True
    try:
        words = list(reader)
    except ValueError as error:
        yield f"a shell cannot read '{line}': {str(error).lower()}", None
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in _BETWEEN:
            command.append(word)
        elif command:
            yield from _of_command(command, scene)
            command = []


def _of_command(words: Sequence[str], scene: _Scene) -> Told:
    program, rest = words[0], list(words[1:])
    if program == "cd" and rest:
        yield from _change_folder(rest[0], scene)
    elif program == "git" and rest[:1] == ["clone"]:
        scene.folder = None
    elif program == "recipe":
        yield from _of_our_command(rest, scene)
    elif program == "olive" and rest[:1] == ["run"]:
        yield from _files_behind(("--config", "--run-config"), rest, scene)
    elif program in ("pip", "python") and "install" in rest:
        yield from _files_behind(("-r", "--requirement", "-c", "--constraint"), rest, scene)
    elif program == "python" and rest and rest[0].endswith(".py"):
        yield from scene.missing(rest[0])


def _change_folder(name: str, scene: _Scene) -> Told:
    bases = [base for base in (scene.folder, scene.clone) if base is not None]
    there = next((base / name for base in bases if (base / name).is_dir()), None)
    if there is None and scene.folder is not None and not is_placeholder(name) and name not in scene.made:
        yield f"there is no folder '{name}'", None
    scene.folder = there


def _files_behind(flags: Sequence[str], words: Sequence[str], scene: _Scene) -> Told:
    for flag, value in pairwise(words):
        if flag in flags:
            yield from scene.missing(value)


def _of_our_command(words: Sequence[str], scene: _Scene) -> Told:
    try:
        contexts = _parsed(scene.commands, words, None)
    except click.UsageError as error:
        if isinstance(error, click.BadParameter) and any(
            is_placeholder(word) and f"'{word}'" in error.message for word in words
        ):
            return  # a file or folder of the reader's own
        yield error.format_message().rstrip("."), _near_option(error)
        return
    except RecipeError as error:
        yield from ((problem.cause, problem.remedy) for problem in error.problems)
        return
    for context in contexts:
        yield from _of_values(context, scene)
    if contexts[-1].info_name in _MAKES_RECIPES:
        scene.made.update(word for word in words if not word.startswith("-"))
    for word in words:
        if _IN_THE_CLONE.match(word) and not _CONFIG.fullmatch(word):
            yield from scene.missing(word)


def _near_option(error: click.UsageError) -> str | None:
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        return did_you_mean(error.option_name, [name for one in error.ctx.command.params for name in one.opts])
    return None


def _parsed(command: click.Command, words: Sequence[str], parent: click.Context | None) -> list[click.Context]:
    """Returns the contexts of a verb and its sub-verbs, parsed by click itself; nothing is run.

    Raises:
        UsageError: click would refuse the words.
        RecipeError: a value is none that the command knows.
    """
    context = click.Context(command, parent=parent, info_name=command.name)
    asks_for_help = not _HELP.isdisjoint(words)
    spoken = [word for word in words if word not in _HELP]
    if not isinstance(command, click.Group):
        if not asks_for_help:
            command.parse_args(context, spoken)
        return [context]
    _, rest, _ = command.make_parser(context).parse_args(spoken)
    if not rest:
        return [context]
    _, verb, rest = command.resolve_command(context, rest)
    further = [word for word in words if word in _HELP]
    return [context, *(_parsed(verb, [*rest, *further], context) if verb is not None else ())]


def _of_values(context: click.Context, scene: _Scene) -> Told:
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        words = [str(one) for one in (value if isinstance(value, tuple) else [value]) if one is not None]
        if isinstance(parameter, click.Argument) and "RECIPE" in (parameter.metavar or ""):
            for word in words:
                yield from _of_recipe_word(word, context.params, scene)
        elif "--config" in parameter.opts:
            for word in words:
                yield from scene.missing(word)


def _of_recipe_word(word: str, values: dict[str, Any], scene: _Scene) -> Told:
    if is_placeholder(word) or word in scene.made or (scene.folder is not None and (scene.folder / word).exists()):
        return
    if word.startswith((".", "/", "~")) or _CONFIG.fullmatch(word):
        yield from scene.missing(word)
        return
    found = next(((info, rest) for name, rest in readings(word) if (info := _named(name, scene))), None)
    if found is None:
        names = [name for one in scene.infos for name in (one.name, *one.aliases)]
        yield f"there is no recipe '{word}'", did_you_mean(word.partition("/")[0], names)
        return
    info, rest = found
    variant = values.get("variant") or rest
    known = [one.name for one in info.recipes]
    if variant and not is_placeholder(variant) and variant_key(variant) not in map(variant_key, known):
        yield f"{info.name} has no variant '{variant}'", did_you_mean(variant, known)


def _named(name: str, scene: _Scene) -> Info | None:
    last = name.rpartition("/")[2]
    return next((one for one in scene.infos if last in (one.name.lower(), *map(str.lower, one.aliases))), None)


def _readme_has_commands(subject: Subject) -> Faults:
    path = subject.folder / "README.md"
    if not path.is_file():
        yield Fault("there is no README.md", Place(str(subject.folder)))
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for command in README_COMMANDS:
        if command not in text:
            yield Fault(f"README.md does not say '{command}'", Place(str(path)))


RULES = (
    Rule(
        "readme-has-commands", "must", "README.md says how to install, run and measure, and how to run with Olive.",
        "A folder must be usable by somebody who sees nothing else.", "run 'recipe render'",
        of_recipe=_readme_has_commands,
    ),
    Rule(
        "commands-are-valid", "must",
        "Commands in documentation have verbs, options, recipes, variants and files that exist.",
        "Whoever pastes a command that fails trusts nothing else on the page.",
        "correct the command; what the reader fills in stands in capitals: ID, PICTURE.png",
        of_recipe=_of_recipe, of_clone=_of_clone,
    ),
)  # fmt: skip
