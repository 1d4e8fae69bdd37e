"""What a word on the command line names: a recipe and its variant, a folder, or a config file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.catalog.discover import (
    CONFIG_SUFFIXES,
    OWN_CATALOG,
    Entry,
    catalog_or_none,
    family_of,
    info_files,
    list_facts,
    quick_info,
    read_entry,
)
from runner.catalog.facts import Facts
from runner.catalog.names import did_you_mean_one_of, nearest, nearest_names, nearness, readings, variant_key
from runner.errors import InvalidRecipe, Place, Problem, UsageError, did_you_mean
from runner.recipe.folder import INFO_NAMES, info_file

if TYPE_CHECKING:
    from runner.recipe.info import Info, Variant


_CONFIG = "olive_config.json"


@dataclass(frozen=True)
class Found:
    """What a word on the command line names.

    Attributes:
        folder: folder of the recipe, or of a config file that belongs to no recipe.
        info: what info.yml says; None for a config file without one.
        variant: the variant; None for a config file that info.yml does not name.
        config: the config file.
    """

    folder: Path
    info: Info | None
    variant: Variant | None
    config: Path

    @property
    def trusted(self) -> bool:
        """Returns whether the folder lies in the catalogue that came with this runner, whose code is trusted."""
        return self.folder.resolve().is_relative_to(OWN_CATALOG)

    @property
    def id(self) -> str:
        """Returns the recipe's id; without a recipe the config file's name without its suffix, or its folder's."""
        if self.info:
            return self.info.name
        return self.folder.resolve().name if self.config.name == _CONFIG else self.config.stem

    @property
    def slug(self) -> str:
        """Returns ``id-variant``, which names output folders and results files."""
        return f"{self.id}-{self.variant.name}" if self.variant else self.id


def find(word: str | None, catalog: Path | None = None, variant: str | None = None) -> Found:
    """Returns the recipe, variant and config file that a word names.

    Args:
        word: a name, `name/variant`, a folder with info.yml or with olive_config.json alone, or a config file; None for the
            current folder. A name is an id, `family/id`, an alias or the model's Hugging Face id, in any case;
            `id.target.precision` is read, too. The name of the recipe in the current folder leads there, whatever the
            catalogue holds.
        catalog: the folder asked for with `--catalog`.
        variant: name of the variant; the first of info.yml where neither this nor the word says.

    Raises:
        UsageError: nothing has that name, several recipes have it, or the recipe has no such variant; says the nearest names.
        InvalidRecipe: the recipe's info.yml is not valid, or names a file that is not there.
    """
    path = Path(word or ".").expanduser()
    if _looks_like_path(word):
        return _at_path(path, variant)
    assert word is not None
    entry, rest = _named(word, catalog)
    if entry is not None:
        if rest and variant and variant_key(rest) != variant_key(variant):
            raise UsageError("two-variants", f"'{word}' names the variant {rest}, --variant {variant}", "name one of them")
        return _of_entry(entry.folder, entry.info, variant or rest)
    if is_there(path):
        return _at_path(path, variant)
    raise _unknown_recipe(word, catalog)


def find_entry(word: str, catalog: Path | None = None) -> Entry:
    """Returns the recipe that a word names, whether its configs are there or still to be rendered.

    Raises:
        UsageError: nothing has that name, or it is no recipe.
        InvalidRecipe: the recipe's info.yml is not valid.
    """
    entry = None if _looks_like_path(word) else _named(word, catalog)[0]
    if entry is not None:
        return entry
    path = Path(word).expanduser()
    if not is_there(path):
        raise _no_such_path(path) if _looks_like_path(word) else _unknown_recipe(word, catalog)
    folder = path if path.is_dir() else path.parent
    file = info_file(folder)
    if file is None:
        raise _not_a_recipe(folder)
    return read_entry(catalog_or_none(catalog), file)


def named_variant(word: str, catalog: Path | None = None) -> Variant | None:
    """Returns the variant that a word says, by `name/variant` in any spelling or by its config file; None for all of a recipe.

    Raises:
        UsageError: nothing has that name, or the recipe has no such variant; says the nearest names.
        InvalidRecipe: the recipe's info.yml is not valid.
    """
    entry, rest = (None, None) if _looks_like_path(word) else _named(word, catalog)
    if entry is not None:
        return _variant_of(entry.info, rest) if rest else None
    path = Path(word).expanduser()
    return find(word, catalog).variant if path.is_file() and path.name not in INFO_NAMES else None


def is_there(path: Path) -> bool:
    """Returns whether there is such a file or folder; a text that cannot be a path, such as a long prompt, is none."""
    try:
        return path.exists()
    except OSError:
        return False


def _unknown_recipe(word: str, catalog: Path | None) -> UsageError:
    root = catalog_or_none(catalog)
    known = [] if root is None else list_facts(root)[0]
    if not known:
        where = f" in {root}" if root else " (and no catalogue was found)"
        remedy = "name a recipe folder or a config file, or use --catalog DIR"
    else:
        where = f" in {root}"
        near = _near_misses(word, known)
        remedy = did_you_mean_one_of(near) if near else "'recipe ls' lists what there is"
    return UsageError("unknown-recipe", f"there is no recipe, folder or file '{word}'{where}", remedy)


def _near_misses(word: str, known: Sequence[Facts]) -> Sequence[str]:
    """The nearest recipes, each with the nearest of its variants where the word is best read with one."""
    scores = {}
    for facts in known:
        score, offer = max(_offers(word, facts))
        scores[offer] = score
    return nearest(scores)


def _offers(word: str, facts: Facts) -> Iterator[tuple[float, str]]:
    for name, rest in readings(word):
        variants = nearest_names(rest, (variant.name for variant in facts.variants), most=1) if rest else [""]
        for variant in variants:
            score = max(nearness(name, one) for one in (facts.name, *facts.aliases, facts.model))
            yield score, f"{facts.name}/{variant}" if variant else facts.name


def _named(word: str, catalog: Path | None) -> tuple[Entry | None, str | None]:
    """The recipe that a word names by its id, and the variant: the current folder's before the catalogue's."""
    entry, rest = _here(word)
    return (entry, rest) if entry else _by_id(word, catalog_or_none(catalog))


def _here(word: str) -> tuple[Entry | None, str | None]:
    file = info_file(Path())
    if file is None:
        return None, None
    try:
        info = quick_info(file)
    except InvalidRecipe:
        if word.strip("/").split("/", maxsplit=1)[0] == Path.cwd().name:
            raise
        return None, None
    family = family_of(None, file)
    own = _lowered(info.name, f"{family}/{info.name}", *info.aliases, info.model.id)
    for name, rest in readings(word):
        if name in own:
            return Entry(Path(), file, family, info), rest
    return None, None


def _lowered(*names: str) -> set[str]:
    return {name.lower() for name in names}


def _looks_like_path(word: str | None) -> bool:
    return word is None or word.startswith((".", "/", "~", "\\")) or word.lower().endswith(CONFIG_SUFFIXES)


def _by_id(word: str, root: Path | None) -> tuple[Entry | None, str | None]:
    """The recipe that a name leads to, and the variant. Other files are read only where no folder has the name.

    Raises:
        UsageError: several recipes have that name.
    """
    if root is None:
        return None, None
    files = list(info_files(root))
    for name, rest in readings(word):
        named = [file for file in files if name in _lowered(file.parent.name, file.parent.relative_to(root).as_posix())]
        if named:
            return read_entry(root, _only(word, root, named)), rest
    known = list_facts(root)[0]
    for name, rest in readings(word):
        named = [facts.file for facts in known if name in _lowered(facts.name, *facts.aliases, facts.model)]
        if named:
            return read_entry(root, _only(word, root, named)), rest
    return None, None


def _only(word: str, root: Path, files: Sequence[Path]) -> Path:
    if len(files) > 1:
        names = [file.parent.relative_to(root).as_posix() for file in files]
        raise UsageError("ambiguous-name", f"'{word}' names several recipes", f"say which: {', '.join(names)}")
    return files[0]


def _at_path(path: Path, variant: str | None) -> Found:
    if not is_there(path):
        raise _no_such_path(path)
    if path.is_dir():
        info = _info_of(path)
        if info is None and (path / _CONFIG).is_file() and variant is None:
            return Found(path, None, None, path / _CONFIG)
        if info is None:
            raise _not_a_recipe(path)
        return _of_entry(path, info, variant)
    if path.name in INFO_NAMES:
        return _of_entry(path.parent, quick_info(path), variant)
    if path.suffix.lower() == ".onnx":
        raise UsageError("not-a-recipe", f"'{path}' is a model, not a recipe", "name the folder that a run left, or a recipe")
    info = _info_of(path.parent)
    named = next((one for one in info.recipes if one.file == path.name), None) if info else None
    if variant and (named is None or variant_key(named.name) != variant_key(variant)):
        raise UsageError("two-variants", f"'{path}' is one config; --variant {variant} names another", "name one of them")
    return Found(path.parent, info if named else None, named, path)


def _info_of(folder: Path) -> Info | None:
    file = info_file(folder)
    return quick_info(file) if file else None


def _not_a_recipe(folder: Path) -> UsageError:
    if (folder / "receipt.json").is_file():
        remedy = "'recipe try', 'recipe bench' and 'recipe serve' take it; other verbs take its recipe"
        return UsageError("not-a-recipe", f"'{folder}' is a finished model, not a recipe", remedy)
    return UsageError("not-a-recipe", f"'{folder}' holds no info.yml", "name a recipe folder, or a config file")


def _no_such_path(path: Path) -> UsageError:
    return UsageError("no-such-path", f"there is no folder or file '{path}'", _neighbours(path))


def _neighbours(path: Path) -> str | None:
    """The nearest name, or the list, of the configs and the folders of recipes that lie where the path should."""
    if not is_there(path.parent) or not path.parent.is_dir():
        return None
    names = [item.name for item in path.parent.iterdir() if item.suffix in CONFIG_SUFFIXES or info_file(item)]
    names = [name for name in names if not name.startswith(".")]
    return did_you_mean(path.name, names) if names else None


def _variant_of(info: Info, name: str | None) -> Variant:
    """The variant of that name, in any of its spellings; the first without a name."""
    same = (variant for variant in info.recipes if name and variant_key(variant.name) == variant_key(name))
    chosen = info.variant(name) or next(same, None)
    if chosen is None:
        names = [one.name for one in info.recipes]
        raise UsageError("unknown-variant", f"{info.name} has no variant '{name}'", did_you_mean(str(name), names))
    return chosen


def _of_entry(folder: Path, info: Info, variant: str | None) -> Found:
    chosen = _variant_of(info, variant)
    config = folder / chosen.file
    place = next(Place(str(folder / name)) for name in INFO_NAMES if (folder / name).is_file())
    if not config.resolve().is_relative_to(folder.resolve()):
        raise InvalidRecipe(Problem("path-leaves-folder", f"'{chosen.file}' lies outside of the recipe folder", place))
    if not config.is_file():
        remedy = f"run 'recipe render {info.name}'" if chosen.pipeline else "name a file that is there"
        raise InvalidRecipe(Problem("missing-file", f"variant {chosen.name}: there is no '{chosen.file}'", place, remedy))
    return Found(folder, info, chosen, config)
