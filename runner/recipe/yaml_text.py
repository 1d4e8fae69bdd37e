"""Changes of single values in the text of a YAML file: comments, order and spelling of everything else stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Path = tuple[str | int, ...]
_PLAIN = re.compile(r"[A-Za-z0-9][^:#\n\"'{}\[\]&*!|>%@`,]*[^\s:#\"'{}\[\],]|[A-Za-z0-9]")


def scalar(value: Any) -> str:
    """Returns a value on one line as YAML writes it; text without quotes where it reads back as the same text."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {scalar(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(scalar, value)) + "]"
    return json.dumps(value)


def with_value(text: str, path: Path, value: Any) -> str:
    """Returns the text with one value changed; the text itself where nothing stands at the path.

    Args:
        text: a YAML document.
        path: keys of mappings and numbers of items that lead to the value.
        value: plain data.
    """
    node = _at(yaml.compose(text, yaml.SafeLoader), path)
    if node is None:
        return text
    return text[: node.start_mark.index] + scalar(value) + text[_end(text, node) :]


def without(text: str, path: Path) -> str:
    """Returns the text without the lines of a member of a block mapping, or of an item of a block list, and their comments.

    The text itself is returned where nothing stands at the path, or where it shares its line with others.
    """
    parent = _at(yaml.compose(text, yaml.SafeLoader), path[:-1])
    if parent is None or getattr(parent, "flow_style", True):
        return text
    found = _member(parent, path[-1])
    if found is None:
        return text
    first, last = found
    lines = text.splitlines(keepends=True)
    begin = first.start_mark.line
    end = text.count("\n", 0, _end(text, last)) + 1
    while begin > 0 and lines[begin - 1].lstrip().startswith("#") and _indent(lines[begin - 1]) == _indent(lines[begin]):
        begin -= 1
    return "".join(lines[:begin] + lines[end:])


def with_member_before(text: str, key: str, before: str, value: Any) -> str:
    """Returns the text with a member of the outermost mapping set: in its place, else in a line of its own above another key.

    Args:
        text: a YAML document.
        key: the member.
        before: the key above which it goes, with the comments and blank lines that stand over that; at the end without it.
        value: plain data.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    if _at(root, (key,)) is not None:
        return with_value(text, (key,), value)
    lines = text.splitlines(keepends=True)
    found = _member(root, before) if root is not None else None
    at = found[0].start_mark.line if found else len(lines)
    while at > 0 and (not lines[at - 1].strip() or lines[at - 1].startswith("#")):
        at -= 1
    return "".join([*lines[:at], f"{key}: {scalar(value)}\n", *lines[at:]])


def _at(node: yaml.Node | None, path: Path) -> yaml.Node | None:
    for part in path:
        found = _member(node, part) if node is not None else None
        if found is None:
            return None
        node = found[1]
    return node


def _member(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The first and last node of a member (key and value) or item (twice the item)."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _end(text: str, node: yaml.Node) -> int:
    """Where the text of a node ends, without the blank lines and comments behind it, which the parser counts in."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return node.start_mark.index + len(text[node.start_mark.index : node.end_mark.index].rstrip())
    return int(node.end_mark.index)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
