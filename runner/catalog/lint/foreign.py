"""The rules for catalogues laid out as olive-recipes is: what its info.yml files should say, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject
from runner.errors import Place, nearest
from runner.recipe.document import Node
from runner.recipe.info_foreign import CONFIG_SUFFIXES, DEVICE_KEYS, DEVICES, PROVIDER_KEYS, first_of, texts
from runner.recipe.migrate import EXECUTION_PROVIDERS

_PROVIDER = "ExecutionProvider"
_LISTS = ("keywords", *PROVIDER_KEYS, *DEVICE_KEYS)


def _entries(subject: Subject) -> Iterator[Node]:
    """Yields every mapping under `recipes`."""
    recipes = subject.tree.members.get("recipes")
    yield from (entry for entry in (recipes.items if recipes else []) if entry.members)


def _at(subject: Subject, node: Node) -> Place:
    return node.origin.place or subject.place()


def _lists_recipes(subject: Subject) -> Faults:
    recipes = subject.tree.members.get("recipes")
    if recipes is None or not recipes.items:
        variants = ", ".join(variant.file for variant in subject.info.recipes[:3])
        yield Fault(f"it lists no recipes; beside it lie {variants}", _at(subject, recipes or subject.tree))
    for entry in recipes.items if recipes else []:
        file = entry.members.get("file")
        if not entry.members or file is None:
            yield Fault("this recipe names no 'file'", _at(subject, entry))
        elif not isinstance(file.value, str) or not file.value.endswith(CONFIG_SUFFIXES):
            yield Fault(f"'{file.plain()}' is no config", _at(subject, file), "name the JSON file that Olive runs")


def _lists_are_lists(subject: Subject) -> Faults:
    for node in (subject.tree, *_entries(subject)):
        for key in _LISTS:
            value = node.members.get(key)
            if value is not None and isinstance(value.value, str) and len(value.value.split()) > 1:
                cause = f"'{key}' is one text of {len(value.value.split())} words: '{value.value}'"
                yield Fault(cause, _at(subject, value), f"begin each with '- ': {', '.join(value.value.split())}")


def _names_tell_apart(subject: Subject) -> Faults:
    names = Counter(str(entry.members["name"].value) for entry in _entries(subject) if "name" in entry.members)
    for entry in _entries(subject):
        name = entry.members.get("name")
        if name is None:
            yield Fault("this recipe has no name", _at(subject, entry), "add 'name'; until then its file's name serves")
        elif names[str(name.value)] > 1:
            yield Fault(f"{names[str(name.value)]} recipes are called '{name.value}'", _at(subject, name))


def _words_are_known(subject: Subject) -> Faults:
    for node in (subject.tree, *_entries(subject)):
        for keys, known, what in ((PROVIDER_KEYS, EXECUTION_PROVIDERS, "execution provider"), (DEVICE_KEYS, DEVICES, "device")):
            for key in keys:
                value = node.members.get(key)
                for word in texts(value.plain()) if value is not None else []:
                    if word not in known:
                        near = _near(word, known)
                        fix = f"did you mean '{near}'?" if near else None
                        yield Fault(f"there is no {what} '{word}'", _at(subject, value or node), fix)


def _near(word: str, known: Sequence[str]) -> str | None:
    """The nearest name; the ending that all providers share makes none near."""
    if not word.endswith(_PROVIDER):
        return nearest(word, known)
    stem = nearest(word.removesuffix(_PROVIDER), [name.removesuffix(_PROVIDER) for name in known])
    return f"{stem}{_PROVIDER}" if stem else None


def _says_where_it_runs(subject: Subject) -> Faults:
    top = subject.tree.plain()
    for entry in _entries(subject):
        for keys in (DEVICE_KEYS, PROVIDER_KEYS):
            if first_of(entry.plain(), keys) is None and first_of(top, keys) is None:
                yield Fault(f"this recipe names no '{keys[0]}'", _at(subject, entry))


def _names_architecture(subject: Subject) -> Faults:
    if not subject.info.arch:
        yield Fault("it names no 'arch'", subject.place())


RULES = (
    Rule(
        "lists-recipes", None, "info.yml lists its recipes, each with its config file.",
        "A config that nothing lists cannot be found.", "list the configs under 'recipes'",
        of_recipe=_lists_recipes, elsewhere="must",
    ),
    Rule(
        "lists-are-lists", None, "Several keywords, providers or devices stand in a list.",
        "YAML joins the lines below a key to one text, and readers find one odd name.", "begin each with '- '",
        of_recipe=_lists_are_lists, elsewhere="must",
    ),
    Rule(
        "recipes-are-told-apart", None, "Every recipe of an info.yml has a name of its own.",
        "A name on the command line must lead to one config.", "give each a name",
        of_recipe=_names_tell_apart, elsewhere="should",
    ),
    Rule(
        "providers-are-known", None, "Providers and devices have ONNX Runtime's names.",
        "No listing by target finds a name of one's own.", "write it as ONNX Runtime does",
        of_recipe=_words_are_known, elsewhere="must",
    ),
    Rule(
        "says-where-it-runs", None, "Every recipe names its device and execution provider.",
        "Otherwise only its config tells, when it does.", "add 'device' and 'ep'",
        of_recipe=_says_where_it_runs, elsewhere="should",
    ),
    Rule(
        "names-architecture", None, "info.yml names the architecture.",
        "Listings by architecture leave it out.", "add 'arch': transformers' model_type",
        of_recipe=_names_architecture, elsewhere="should",
    ),
)  # fmt: skip
