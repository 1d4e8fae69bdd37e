"""The rules of the catalogue. One table: `recipe lint`, its `--rules` and docs/lint-rules.md come from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from runner.bench.scenarios import FIGURES
from runner.catalog.discover import family_of, info_files
from runner.errors import InvalidRecipe, Place, Problem, RecipeError, did_you_mean
from runner.models.tasks import TASKS
from runner.passes.table import options_of
from runner.recipe.document import Node
from runner.recipe.info import INFO_NAMES, Info, Variant, read_info
from runner.recipe.load import LoadedConfig, load_config
from runner.targets.target import TARGETS, Target
from runner.templating.recipe import Rendering, clone_of, misnamed, normal_name, render_recipe

Severity = Literal["must", "should"]
MOST_SAMPLE_MB = 5.0
README_COMMANDS = ("pip install -r requirements.txt", "recipe run", "recipe bench", "olive run --config")
_BRINGS_RUNNER = ("-e ", "onnx-recipes @ ")
_IGNORED_FILES = {"README.md", "LICENSES.md"}


@dataclass(frozen=True)
class Subject:
    """A recipe folder under inspection.

    Attributes:
        folder: the folder.
        family: its path below the catalogue's root.
        file: its info.yml.
        info: what info.yml says.
        tree: the same with places.
        folders: every recipe folder of the catalogue.
    """

    folder: Path
    family: str
    file: Path
    info: Info
    tree: Node
    folders: Sequence[Path]

    def place(self, *path: str | int) -> Place:
        """Returns the line of info.yml where a value stands."""
        return self.tree.deepest(path).origin.place or Place(str(self.file))

    def variants(self) -> Iterator[tuple[Variant, Place]]:
        """Yields every variant and its line."""
        for number, variant in enumerate(self.info.recipes):
            yield variant, self.place("recipes", number, "name")

    @cached_property
    def configs(self) -> dict[str, LoadedConfig | RecipeError]:
        """Returns every variant's config by its file, or the error that loading it gave."""
        loaded: dict[str, LoadedConfig | RecipeError] = {}
        for variant in self.info.recipes:
            path = self.folder / variant.file
            if path.is_file():
                try:
                    loaded[variant.file] = load_config([path], options_of)
                except RecipeError as error:
                    loaded[variant.file] = error
        return loaded

    @cached_property
    def renderings(self) -> list[Rendering]:
        """Returns what the rendered files must say.

        Raises:
            InvalidRecipe: a template cannot be rendered.
        """
        return render_recipe(self.folder, self.family, self.info, clone_of(self.folder))


Found = Iterator[tuple[str, Place]]


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue.

    Attributes:
        id: short stable name.
        severity: ``must`` fails the check, ``should`` is told.
        what: what holds in a good recipe.
        why: what goes wrong otherwise.
        fix: what to do.
        check: yields (what is wrong, where) for a folder.
    """

    id: str
    severity: Severity
    what: str
    why: str
    fix: str
    check: Callable[[Subject], Found]


@dataclass(frozen=True)
class Finding:
    """A rule that a folder breaks."""

    severity: Severity
    problem: Problem


def lint(root: Path | None, folders: Sequence[Path] | None = None) -> Iterator[tuple[Path, list[Finding]]]:
    """Yields every recipe folder of the catalogue (or only the given ones, wherever they lie) and what is wrong with it."""
    files = list(info_files(root)) if root else []
    everything = [file.parent for file in files]
    wanted = None if folders is None else {folder.resolve() for folder in folders}
    for file in files:
        if wanted is None or file.parent.resolve() in wanted:
            yield file.parent, lint_folder(root, file, everything)
    inside = {folder.resolve() for folder in everything}
    for folder in folders or ():
        if folder.resolve() not in inside:
            file = next(folder.resolve() / name for name in INFO_NAMES if (folder / name).is_file())
            yield folder, lint_folder(root, file, [file.parent])


def lint_folder(root: Path | None, file: Path, folders: Sequence[Path]) -> list[Finding]:
    """Returns what is wrong with one recipe folder; where info.yml cannot be read, only that."""
    try:
        info, tree = read_info(file)
    except InvalidRecipe as error:
        return [Finding("must", problem) for problem in error.problems]
    subject = Subject(file.parent, family_of(root, file), file, info, tree, folders)
    return [
        Finding(rule.severity, Problem(rule.id, cause, place, rule.fix))
        for rule in RULES
        for cause, place in rule.check(subject)
    ]


def _name_is_folder(subject: Subject) -> Found:
    if subject.info.name != subject.folder.name:
        yield f"the recipe is called '{subject.info.name}', its folder '{subject.folder.name}'", subject.place("name")


def _name_is_unique(subject: Subject) -> Found:
    same = [folder for folder in subject.folders if folder.name == subject.folder.name and folder != subject.folder]
    for folder in same:
        yield f"there is another recipe '{subject.info.name}' in {folder}", subject.place("name")


def _names_are_known(subject: Subject) -> Found:
    task = subject.info.model.task
    if task.removesuffix("-with-past") not in TASKS:
        yield f"there is no task '{task}'; {did_you_mean(task, TASKS)}", subject.place("model", "task")
    for number, variant in enumerate(subject.info.recipes):
        for name in variant.gates:
            if name not in FIGURES:
                place = subject.place("recipes", number, "gates", name)
                yield f"there is no figure '{name}' to hold a gate against; {did_you_mean(name, FIGURES)}", place
    for path, problem in misnamed(subject.info, clone_of(subject.folder)):
        yield f"{problem.cause}; {problem.remedy}", subject.place(*path)


def _named_files(subject: Subject) -> Iterator[tuple[str, Place]]:
    for variant, place in subject.variants():
        yield variant.file, place
    for key in ("text", "sentences", "images"):
        path = getattr(subject.info.evaluation, key)
        if path:
            yield path, subject.place("evaluation", key)


def _files_exist(subject: Subject) -> Found:
    for name, place in _named_files(subject):
        if not (subject.folder / name).exists():
            names = [path.relative_to(subject.folder).as_posix() for path in subject.folder.rglob("*") if path.suffix != ".pyc"]
            yield f"there is no '{name}'; {did_you_mean(name, names)}", place


def _paths_stay_inside(subject: Subject) -> Found:
    for name, place in _named_files(subject):
        if not (subject.folder / name).resolve().is_relative_to(subject.folder.resolve()):
            yield f"'{name}' lies outside of the recipe folder", place


def _configs_load(subject: Subject) -> Found:
    for name, loaded in subject.configs.items():
        if isinstance(loaded, RecipeError):
            for problem in loaded.problems:
                remedy = f"; {problem.remedy}" if problem.remedy else ""
                yield f"{problem.rule}: {problem.cause}{remedy}", problem.place or Place(str(subject.folder / name))


def _config_agrees(subject: Subject) -> Found:
    """The config names the model and the provider that info.yml names."""
    for variant, _ in subject.variants():
        loaded = subject.configs.get(variant.file)
        if not isinstance(loaded, LoadedConfig):
            continue
        model, target = loaded.config.input_model, loaded.config.system(loaded.config.target)
        if model.model_path != subject.info.model.id:
            place = loaded.tree.deepest(("input_model", "model_path")).origin.place
            yield f"info.yml names the model {subject.info.model.id}, the config {model.model_path}", place or subject.place()
        providers = [
            name for accelerator in (target.accelerators if target else []) for name in accelerator.execution_providers
        ]
        if providers[:1] != [variant.ep]:
            place = loaded.tree.deepest(("systems",)).origin.place
            yield f"info.yml says {variant.ep}, the config {', '.join(providers) or 'no provider'}", place or subject.place()


def _target(variant: Variant) -> Target | None:
    return next((target for target in TARGETS.values() if target.provider == variant.ep), None)


def _precision_is_legal(subject: Subject) -> Found:
    for variant, place in subject.variants():
        target = _target(variant)
        if target is None:
            yield f"{variant.name}: {variant.ep} is none of the targets {', '.join(TARGETS)}", place
        elif variant.precision is not None and variant.precision not in target.precisions:
            yield f"{variant.name}: {target.name} runs {', '.join(target.precisions)}, not {variant.precision}", place


def _is_rendered(subject: Subject) -> Found:
    if any(misnamed(subject.info, clone_of(subject.folder))):
        return
    try:
        renderings = subject.renderings
    except InvalidRecipe as error:
        yield from ((problem.cause, problem.place or subject.place()) for problem in error.problems)
        return
    for rendering in renderings:
        if rendering.difference() is not None:
            yield f"{rendering.path.name} differs from its rendering", Place(str(rendering.path))


def _requirements_are_pinned(subject: Subject) -> Found:
    for path in sorted(subject.folder.glob("requirements*.txt")):
        target = path.stem.removeprefix("requirements").lstrip("-.") or "cpu"
        try:
            pins = clone_of(subject.folder).pins(f"{target}.txt")
        except InvalidRecipe as error:
            yield error.problems[0].cause, error.problems[0].place or Place(str(path))
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        if not any(line.startswith(_BRINGS_RUNNER) for line in lines):
            yield "no line brings the runner", Place(str(path), 1)
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.startswith(("#", *_BRINGS_RUNNER)):
                yield from ((cause, Place(str(path), number)) for cause in _wrong_pin(line, pins))
    if not (subject.folder / "requirements.txt").is_file():
        yield "there is no requirements.txt", Place(str(subject.folder))


def _wrong_pin(line: str, pins: dict[str, str]) -> Iterator[str]:
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==([\w.+!-]+)", line.split(";", maxsplit=1)[0].strip())
    if not found:
        yield f"'{line.strip()}' is not pinned as name==version"
        return
    tested = pins.get(normal_name(found[1]))
    if tested != found[2]:
        yield f"{found[1]} is pinned to {found[2]}, but {tested or 'no version'} was tested"


def _readme_has_commands(subject: Subject) -> Found:
    path = subject.folder / "README.md"
    if not path.is_file():
        yield "there is no README.md", Place(str(subject.folder))
        return
    text = path.read_text(encoding="utf-8")
    for command in README_COMMANDS:
        if command not in text:
            yield f"README.md does not say '{command}'", Place(str(path))


def _sample_files(subject: Subject) -> list[Path]:
    folder = subject.folder / "sample_data"
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _IGNORED_FILES]


def _sample_data_is_licensed(subject: Subject) -> Found:
    folder = subject.folder / "sample_data"
    files = _sample_files(subject)
    if not files:
        yield "there is no sample data", Place(str(folder))
        return
    sheets = [path for name in _IGNORED_FILES if (path := folder / name).is_file()]
    if not sheets:
        yield "neither sample_data/README.md nor LICENSES.md says where the data is from", Place(str(folder))
        return
    text = "".join(path.read_text(encoding="utf-8") for path in sheets)
    for name in sorted({path.relative_to(folder).parts[0] for path in files}):
        if name not in text:
            yield f"{sheets[0].name} says nothing of '{name}'", Place(str(sheets[0]))


def _sample_data_is_small(subject: Subject) -> Found:
    megabytes = sum(path.stat().st_size for path in _sample_files(subject)) / 1e6
    if megabytes > MOST_SAMPLE_MB:
        yield (
            f"sample_data holds {megabytes:.1f} MB, at most {MOST_SAMPLE_MB:g} is wanted",
            Place(str(subject.folder / "sample_data")),
        )


def _links_are_alive(subject: Subject) -> Found:
    for path in sorted(subject.folder.rglob("*.md")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for link in re.findall(r"\]\(([^)\s]+)\)", line):
                target = link.partition("#")[0]
                if target and "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                    yield f"the link to '{link}' leads nowhere", Place(str(path), number)


def _tells_what_it_is(subject: Subject) -> Found:
    for key in ("title", "summary"):
        if not getattr(subject.info, key):
            yield f"info.yml has no {key}", subject.place(key)


def _has_gates(subject: Subject) -> Found:
    for variant, place in subject.variants():
        if not variant.gates:
            yield f"{variant.name} has no gate", place


def _facts_agree(subject: Subject) -> Found:
    """Bytes a parameter: between 4 bits and fp32 with some room for buffers and a second copy of tied weights."""
    model = subject.info.model
    each = model.download_mb * 1e6 / model.parameters
    if not 0.4 <= each <= 6:
        told = f"{model.download_mb:g} MB for {model.parameters:,} parameters are {each:.2f} bytes each"
        yield told, subject.place("model", "download_mb")


def _is_measured(subject: Subject) -> Found:
    for variant, place in subject.variants():
        if not list((subject.folder / "results").glob(f"*.{variant.name}.json")):
            yield f"{variant.name} has no results file", place


# Problems of info.yml itself are told under the rules of the loader: unknown-key, missing-key, bad-value, duplicate-variant …
RULES: tuple[Rule, ...] = (
    Rule(
        "name-is-folder", "must", "The recipe's name is its folder's name.",
        "People type what they see in a file listing.", "rename the folder, or change 'name' in info.yml", _name_is_folder,
    ),
    Rule(
        "name-is-unique", "must", "No two recipes have the same name.",
        "A name on the command line must lead to one recipe.", "give one of them another name", _name_is_unique,
    ),
    Rule(
        "names-are-known", "must", "Task, gates, pipeline and settings have names that something reads.",
        "A misspelt one would leave a step or a bar out, silently.", "correct the name in info.yml", _names_are_known,
    ),
    Rule(
        "files-exist", "must", "Every file that info.yml names is there.",
        "A variant without its config cannot be run.", "write or render the file, or correct its name", _files_exist,
    ),
    Rule(
        "paths-stay-inside", "must", "Every path of info.yml stays inside the folder.",
        "A folder must work when it is copied elsewhere.", "move the file into the recipe folder", _paths_stay_inside,
    ),
    Rule(
        "config-loads", "must", "Every config is valid: known passes, known options, legal values.",
        "An option that nobody knows would change nothing, silently.", "correct the config, or its template", _configs_load,
    ),
    Rule(
        "config-agrees", "must", "A config names the model and execution provider that info.yml names.",
        "Otherwise the listing lies about what is run.", "make info.yml and the config agree", _config_agrees,
    ),
    Rule(
        "precision-is-legal", "must", "The target can run the variant's precision.",
        "DirectML, for one, has no int8 kernels for language models.",
        "choose another precision or target", _precision_is_legal,
    ),
    Rule(
        "is-rendered", "must", "Rendered files are equal to their rendering.",
        "What is edited by hand is lost with the next rendering.",
        "change the template or info.yml, then run 'recipe render'", _is_rendered,
    ),
    Rule(
        "requirements-are-pinned", "must", "requirements.txt pins every package to the version in constraints/.",
        "A recipe that installs something else tomorrow is not the one that was tested.",
        "run 'recipe render', or change constraints/", _requirements_are_pinned,
    ),
    Rule(
        "readme-has-commands", "must", "README.md says how to install, run and measure, and how to run with Olive.",
        "A folder must be usable by somebody who sees nothing else.", "run 'recipe render'", _readme_has_commands,
    ),
    Rule(
        "sample-data-is-licensed", "must", "There is sample data, and a sheet beside it names source and licence of each file.",
        "Recipes must run without a network, and what lies in the repository must be free to lie there.",
        "add the files to sample_data/README.md", _sample_data_is_licensed,
    ),
    Rule(
        "sample-data-is-small", "should", f"Sample data takes at most {MOST_SAMPLE_MB:g} MB.",
        "Everybody who clones the catalogue downloads it.", "keep a smaller sample", _sample_data_is_small,
    ),
    Rule(
        "links-are-alive", "must", "Links to files lead somewhere.",
        "A dead link costs every reader a minute.", "correct the link", _links_are_alive,
    ),
    Rule(
        "tells-what-it-is", "should", "info.yml has a title and a summary.",
        "Listings and README.md show them.", "write them", _tells_what_it_is,
    ),
    Rule(
        "has-gates", "should", "Every variant says what it must reach.",
        "A variant without a bar can rot unnoticed.", "add 'gates' to the variant, such as 'cosine: \">= 0.99\"'", _has_gates,
    ),
    Rule(
        "facts-agree", "should", "Download size and number of parameters fit together.",
        "One of them is a typing error otherwise.", "check both against the model", _facts_agree,
    ),
    Rule(
        "is-measured", "should", "Every variant has a results file.",
        "Claims need figures.", "run 'recipe bench --save' where the model can be had", _is_measured,
    ),
)  # fmt: skip
