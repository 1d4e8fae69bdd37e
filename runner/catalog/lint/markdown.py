"""Reads Markdown for what rules check: links, the anchors that links may lead to, and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Line = tuple[int, str]

_FENCE = re.compile(r"\s*(```+|~~~+)\s*([\w-]*)")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)|^\s*\[[^\]]+\]:\s+(\S+)|\b(?:href|src)=\"([^\"]+)\"")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_ANCHOR = re.compile(r"\b(?:id|name)=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced block: the language that it names, and its lines."""

    language: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Page:
    """A Markdown file.

    Attributes:
        path: the file.
        prose: its lines outside of fenced blocks, with their numbers.
        blocks: its fenced blocks.
    """

    path: Path
    prose: Sequence[Line]
    blocks: Sequence[Block]

    @property
    def links(self) -> Iterator[Line]:
        """Yields (line, target) of every link, picture and reference."""
        for number, line in self.prose:
            for found in _LINK.finditer(re.sub(r"`[^`]*`", "", line)):
                yield number, found[1] or found[2] or found[3]

    @cached_property
    def anchors(self) -> frozenset[str]:
        """Returns the names that `#name` may say: headings as forges spell them, and explicit ids."""
        seen: dict[str, int] = {}
        names = set()
        for _, line in self.prose:
            names.update(_ANCHOR.findall(line))
            if heading := _HEADING.match(line):
                slug = _slug(heading[1])
                repeated = seen.get(slug, 0)
                seen[slug] = repeated + 1
                names.add(f"{slug}-{repeated}" if repeated else slug)
        return frozenset(names)


def read_page(path: Path) -> Page:
    """Returns the page; bytes that are not UTF-8 are replaced."""
    prose: list[Line] = []
    blocks: list[Block] = []
    fence, language, inside = "", "", list[Line]()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        marks = _FENCE.match(line)
        if not fence and marks:
            fence, language, inside = marks[1], marks[2].lower(), []
        elif fence and marks and marks[1].startswith(fence) and not marks[2]:
            blocks.append(Block(language, inside))
            fence = ""
        elif fence:
            inside.append((number, line))
        else:
            prose.append((number, line))
    return Page(path, prose, blocks)


def _slug(heading: str) -> str:
    """A heading's anchor on GitHub: markup and punctuation gone, lower case, each blank a hyphen."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
