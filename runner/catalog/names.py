"""The spellings that a name on the command line may have, and the names that are near a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

NAME_REMEDY = "use small letters, digits, '.', '-' and '_', as in granite-3.3-2b-instruct; NAME.cpu.int4 is a variant's"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LONGEST = 200  # characters: anything longer is a text, no name
_NEAR = 0.6
_AS_NEAR = 0.15  # by how much less a further name may be near
_ONLY_BEGINNING = 0.2  # how much less it counts when only the beginning of a name is spelt alike
_TELLING = 3  # characters: less stands in too many names
_TARGETS = {"directml": "dml", "gpu": "cuda"}
# The slash before the last part, and the dots of the spelling `id.target.precision`.
_BEFORE_VARIANT = re.compile(r"/(?=[^/]+$)|\.(?=(?:cpu|cuda|gpu|dml|directml|npu)[-._][^/]*$)")


def readings(word: str) -> Iterator[tuple[str, str | None]]:
    """Yields (name of a recipe, name of a variant) that a word may mean, the longest name first, in lower case.

    `phi-4.cpu.int4` is `phi-4` with the variant `cpu-int4`, `phi/phi-4/cpu-int4` is `phi/phi-4` with the same.
    """
    word = word.strip("/").lower()
    yield word, None
    if len(word) > _LONGEST or re.search(r"\s", word):
        return
    for mark in reversed(list(_BEFORE_VARIANT.finditer(word))):
        yield word[: mark.start()], word[mark.end() :]


def is_name(text: str) -> bool:
    """Returns whether a text can be a recipe's name: letters, digits, dots, hyphens, and no variant's name."""
    return _NAME.fullmatch(text) is not None and len(list(readings(text))) == 1


def variant_key(name: str) -> str:
    """Returns what two spellings of a variant's name have in common: `directml-fp16`, `DML.fp16` and `dml-fp16` are one."""
    first, *others = re.split(r"[-._]", name.lower())
    return "-".join((_TARGETS.get(first, first), *others))


def compact(name: str) -> str:
    """Returns a name without what people leave out or mix up: case, hyphens, dots, underscores, slashes and blanks."""
    return re.sub(r"[-._/\s]", "", name.lower())


def nearness(word: str, name: str) -> float:
    """Returns how near a word is to a name: from 0 to 1 by their spelling, more where the name holds it."""
    wanted, key = compact(word), compact(name)
    if not wanted:
        return 0.0
    if wanted == key:
        return 3.0
    if len(wanted) >= _TELLING and key.startswith(wanted):
        return 2.0
    if len(wanted) >= _TELLING and wanted in key:
        return 1.5
    whole = difflib.SequenceMatcher(None, wanted, key).ratio()
    beginning = difflib.SequenceMatcher(None, wanted, key[: len(wanted)]).ratio()
    return max(whole, beginning - _ONLY_BEGINNING)


def nearest_names(word: str, known: Iterable[str], most: int = 3) -> Sequence[str]:
    """Returns the known names that are near to a word, the nearest first; none where nothing is near."""
    return nearest({name: nearness(word, name) for name in known}, most)


def nearest(scores: Mapping[str, float], most: int = 3) -> Sequence[str]:
    """Returns the names that are near by their `nearness`, the nearest first, shorter ones before longer ones."""
    least = max(_NEAR, max(scores.values(), default=0.0) - _AS_NEAR)
    near = sorted((-score, len(name), name) for name, score in scores.items() if score >= least)
    return [name for _, _, name in near[:most]]


def did_you_mean_one_of(names: Sequence[str]) -> str:
    """Returns a remedy that offers names: `did you mean 'a', 'b' or 'c'?`."""
    *others, last = (f"'{name}'" for name in names)
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
