"""What licences of models allow, in categories: the table that `recipe ls --license` and `recipe show` read.

It helps to choose; it is no legal advice. What counts is the licence's own text, on the model's page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PERMISSIVE = "permissive"
COPYLEFT = "copyleft"
RESPONSIBLE_USE = "responsible-use"
COMMUNITY = "community"
NON_COMMERCIAL = "non-commercial"
UNCLASSIFIED = "unclassified"

CATEGORIES: Mapping[str, str] = {
    PERMISSIVE: "use, change and sell it; keep the notice",
    COPYLEFT: "what is derived from it is passed on under the same terms",
    RESPONSIBLE_USE: "open to everybody, with a list of forbidden uses that is passed on",
    COMMUNITY: "the maker's own terms: commercial use under conditions",
    NON_COMMERCIAL: "research and trial only",
    UNCLASSIFIED: "not in the table of licences: read it before use",
}


@dataclass(frozen=True)
class Licence:
    """A licence.

    Attributes:
        name: SPDX id, or the licence's own name.
        category: one of `CATEGORIES`.
        why: what puts it there.
    """

    name: str
    category: str
    why: str


_USES = "forbidden uses are listed, and bind everybody who gets the model"
_LLAMA = "acceptable-use policy; above 700 million monthly users another licence is needed; derivatives name it"

_KNOWN = (
    Licence("MIT", PERMISSIVE, "asks for its notice only"),
    Licence("Apache-2.0", PERMISSIVE, "asks for notices and a word on changes; grants patents"),
    Licence("BSD-2-Clause", PERMISSIVE, "asks for its notice only"),
    Licence("BSD-3-Clause", PERMISSIVE, "asks for its notice, and not to advertise with the authors' names"),
    Licence("ISC", PERMISSIVE, "asks for its notice only"),
    Licence("CC0-1.0", PERMISSIVE, "gives up every right"),
    Licence("Unlicense", PERMISSIVE, "gives up every right"),
    Licence("CC-BY-4.0", PERMISSIVE, "asks to name the authors"),
    Licence("GPL-3.0", COPYLEFT, "derived works are passed on under the GPL, with their source"),
    Licence("AGPL-3.0", COPYLEFT, "like the GPL, and serving it over a network counts as passing on"),
    Licence("LGPL-3.0", COPYLEFT, "changes of it are passed on under the LGPL"),
    Licence("CC-BY-SA-4.0", COPYLEFT, "derived works are passed on under the same licence"),
    Licence("OpenRAIL", RESPONSIBLE_USE, _USES),
    Licence("OpenRAIL++-M", RESPONSIBLE_USE, _USES),
    Licence("CreativeML-OpenRAIL-M", RESPONSIBLE_USE, _USES),
    Licence("BigScience-OpenRAIL-M", RESPONSIBLE_USE, _USES),
    Licence("Llama-2", COMMUNITY, _LLAMA),
    Licence("Llama-3", COMMUNITY, _LLAMA),
    Licence("Llama-3.1", COMMUNITY, _LLAMA),
    Licence("Llama-3.2", COMMUNITY, _LLAMA),
    Licence("Llama-3.3", COMMUNITY, _LLAMA),
    Licence("Gemma", COMMUNITY, "prohibited-use policy that is passed on; use may be restricted later"),
    Licence("Tongyi-Qianwen", COMMUNITY, "above 100 million monthly users another licence is needed"),
    Licence("Qwen-Research", NON_COMMERCIAL, "research and evaluation only; commercial use asks for another licence"),
    Licence("CC-BY-NC-4.0", NON_COMMERCIAL, "forbids commercial use"),
    Licence("CC-BY-NC-SA-4.0", NON_COMMERCIAL, "forbids commercial use; derived works under the same licence"),
)  # fmt: skip


def _key(name: str) -> str:
    """`llama3.2`, `Llama-3.2` and `LLAMA 3.2` are one name."""
    return re.sub(r"[^a-z0-9+.]", "", name.lower())


_BY_KEY = {_key(one.name): one for one in _KNOWN}


def licence_named(name: str) -> Licence:
    """Returns the licence of that name, in any spelling; `unclassified` where the table has none."""
    return _BY_KEY.get(_key(name)) or Licence(name, UNCLASSIFIED, CATEGORIES[UNCLASSIFIED])


def meant_by(asked: str, name: str) -> bool:
    """Returns whether `asked`, a category or a part of a name, means the licence `name`."""
    wanted = asked.lower()
    return licence_named(name).category == wanted if wanted in CATEGORIES else _key(asked) in _key(name)
