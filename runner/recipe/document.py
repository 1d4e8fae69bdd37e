"""Reads JSON (with // and /* */ comments) and YAML into a tree whose every value knows where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from runner.errors import InvalidRecipe, Place, Problem


@dataclass(frozen=True, slots=True)
class Origin:
    """Who set a value: a place in a file, an override on the command line, a flag, or the default."""

    text: str
    place: Place | None = None

    @classmethod
    def of_file(cls, file: str, line: int) -> Origin:
        """Returns the origin of a value that stands in a file."""
        place = Place(file, line)
        return cls(str(place), place)

    def place_within(self, document: Place) -> Place | None:
        """Returns where to look: the document as a whole where nobody set the value, None where the command line did."""
        return document if self is DEFAULT else self.place

    @property
    def blame(self) -> str:
        """Returns ` (set by --set …)` of a value that no file holds, to go behind its name; empty for any other."""
        return f" (set by {self})" if self.place is None and self is not DEFAULT else ""

    def __str__(self) -> str:
        return self.text


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its origin. A mapping's members and a list's items are nodes themselves.

    A member's origin is the line of its key, which is where a reader looks for it.
    """

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    origin: Origin

    def plain(self) -> Any:
        """Returns the value as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    @property
    def members(self) -> dict[str, Node]:
        """Returns the members of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """Returns the items of a list; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def with_members(self, **changes: Node | None) -> Node:
        """Returns a copy of a mapping with members set, or taken out where the change is None."""
        members = {**self.members, **{key: node for key, node in changes.items() if node is not None}}
        return Node({key: node for key, node in members.items() if changes.get(key, node) is not None}, self.origin)

    def deepest(self, path: tuple[str | int, ...]) -> Node:
        """Returns the node at `path`, or its nearest parent that exists."""
        node = self
        for part in path:
            child = node.members.get(part) if isinstance(part, str) else node.items[part] if part < len(node.items) else None
            if child is None:
                break
            node = child
        return node

    def leaves(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Node]]:
        """Yields (path, node) of every scalar and every empty mapping or list, in document order."""
        children: list[tuple[str | int, Node]] = [*self.members.items(), *enumerate(self.items)]
        if not children:
            yield path, self
        for key, child in children:
            yield from child.leaves((*path, key))


def node_of(value: Any, origin: Origin) -> Node:
    """Returns plain Python data as a tree in which everything has the one origin."""
    if isinstance(value, dict):
        return Node({str(key): node_of(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([node_of(item, origin) for item in value], origin)
    return Node(value, origin)


def read_document(path: Path, shown_as: str | None = None) -> Node:
    """Reads a .json, .jsonc, .yml or .yaml file.

    Args:
        path: the file.
        shown_as: how errors and origins name the file; the path as given by default.

    Raises:
        InvalidRecipe: the file is missing, not UTF-8, or not well-formed; a key stands twice.
    """
    name = shown_as or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InvalidRecipe(Problem("missing-file", "there is no such file", Place(name))) from None
    except IsADirectoryError:
        raise InvalidRecipe(Problem("missing-file", "this is a folder, not a file", Place(name))) from None
    except UnicodeDecodeError as error:
        raise InvalidRecipe(Problem("bad-encoding", f"not UTF-8 text ({error.reason})", Place(name))) from None
    except OSError as error:
        raise InvalidRecipe(Problem("unreadable-file", f"cannot be read: {error.strerror}", Place(name))) from None
    if path.suffix.lower() in (".yml", ".yaml"):
        return _YamlReader(text, name).read()
    return _JsonReader(text, name).read()


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file

    def fail(self, rule: str, cause: str, line: int, remedy: str | None = None) -> NoReturn:
        raise InvalidRecipe(Problem(rule, cause, Place(self.file, line), remedy))


class _JsonReader(_Reader):
    """RFC 8259 with comments. Python's own scanner reads the strings; only structure and places are ours."""

    _blank = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
    _number = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
    _words: ClassVar[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
    _deepest = 200

    def read(self) -> Node:
        self.starts = [0, *(found.end() for found in re.finditer("\n", self.text))]
        node, at = self._value(self._skip(0), self._line(self._skip(0)), 0)
        at = self._skip(at)
        if at < len(self.text):
            self.fail("bad-json", f"unexpected {self._seen(at)} behind the end of the document", self._line(at))
        return node

    def _line(self, at: int) -> int:
        low, high = 0, len(self.starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= at else (low, middle)
        return low + 1

    def _skip(self, at: int) -> int:
        found = self._blank.match(self.text, at)
        return found.end() if found else at

    def _seen(self, at: int) -> str:
        return f"'{self.text[at]}'" if at < len(self.text) else "end of file"

    def _value(self, at: int, line: int, depth: int) -> tuple[Node, int]:
        if depth > self._deepest:
            self.fail("bad-json", f"nested deeper than {self._deepest} levels", self._line(at))
        origin = Origin.of_file(self.file, line)
        opening = self.text[at : at + 1]
        if opening == "{":
            return self._mapping(at, origin, depth)
        if opening == "[":
            return self._list(at, origin, depth)
        if opening == '"':
            text, end = self._string(at)
            return Node(text, origin), end
        found = self._number.match(self.text, at)
        if found:
            return Node(json.loads(found.group()), origin), found.end()
        for word, value in self._words.items():
            if self.text.startswith(word, at):
                return Node(value, origin), at + len(word)
        self.fail("bad-json", f"a value was expected, not {self._seen(at)}", self._line(at), self._hint(at))

    def _hint(self, at: int) -> str | None:
        before = self.text[:at].rstrip()
        if before.endswith(",") and self.text[at : at + 1] in ("}", "]"):
            return "take out the comma before it"
        if self.text[at : at + 1] == "'":
            return 'JSON strings stand in double quotes: "…"'
        return {"T": "JSON writes true", "F": "JSON writes false", "N": "JSON writes null"}.get(self.text[at : at + 1])

    def _string(self, at: int) -> tuple[str, int]:
        try:
            text, end = scanstring(self.text, at + 1, True)
            return str(text), int(end)
        except json.JSONDecodeError as error:
            self.fail("bad-json", error.msg.rstrip(":").lower(), self._line(error.pos))

    def _mapping(self, at: int, origin: Origin, depth: int) -> tuple[Node, int]:
        members: dict[str, Node] = {}
        at = self._skip(at + 1)
        while self.text[at : at + 1] != "}":
            if self.text[at : at + 1] != '"':
                self.fail("bad-json", f"a key was expected, not {self._seen(at)}", self._line(at), self._hint(at))
            line = self._line(at)
            key, at = self._string(at)
            at = self._skip(at)
            if self.text[at : at + 1] != ":":
                self.fail("bad-json", f"':' was expected behind the key '{key}', not {self._seen(at)}", self._line(at))
            if key in members:
                self.fail("duplicate-key", f"'{key}' stands twice in one mapping", line, "keep one of them")
            members[key], at = self._value(self._skip(at + 1), line, depth + 1)
            at = self._next(at, "}")
        return Node(members, origin), at + 1

    def _list(self, at: int, origin: Origin, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        at = self._skip(at + 1)
        while self.text[at : at + 1] != "]":
            item, at = self._value(at, self._line(at), depth + 1)
            items.append(item)
            at = self._next(at, "]")
        return Node(items, origin), at + 1

    def _next(self, at: int, closing: str) -> int:
        end = at
        at = self._skip(at)
        if self.text[at : at + 1] == ",":
            at = self._skip(at + 1)
            if self.text[at : at + 1] == closing:
                self.fail("bad-json", f"nothing follows the comma before '{closing}'", self._line(at), self._hint(at))
            return at
        if self.text[at : at + 1] != closing:
            remedy = "is a comma missing at the end of the line before?" if self._line(at) > self._line(end) else None
            self.fail("bad-json", f"',' or '{closing}' was expected, not {self._seen(at)}", self._line(at), remedy)
        return at


class _YamlReader(_Reader):
    """YAML's safe subset, composed to nodes for their places; aliases are followed, tags are refused."""

    _plain_tags = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

    def read(self) -> Node:
        try:
            root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.fail("bad-yaml", error.problem or "not YAML", mark.line + 1 if mark else 1)
        except yaml.YAMLError as error:
            self.fail("bad-yaml", str(error).splitlines()[0], 1)
        if root is None:
            return Node({}, Origin.of_file(self.file, 1))
        self.constructor = yaml.SafeLoader("")
        return self._node(root, root.start_mark.line + 1, ())

    def _node(self, node: yaml.Node, line: int, above: tuple[int, ...]) -> Node:
        if id(node) in above:
            self.fail("bad-yaml", "an alias refers to a node that contains it", line)
        origin = Origin.of_file(self.file, line)
        above = (*above, id(node))
        if isinstance(node, yaml.CollectionNode) and node.tag not in self._plain_tags:
            self.fail("bad-yaml", f"the tag {node.tag} is not allowed", line)
        if isinstance(node, yaml.MappingNode):
            self.constructor.flatten_mapping(node)  # lays `<<` merges out
            members: dict[str, Node] = {}
            for key_node, value_node in node.value:
                key_line = key_node.start_mark.line + 1
                key = str(self._scalar(key_node, key_line))
                if key in members:
                    self.fail("duplicate-key", f"'{key}' stands twice in one mapping", key_line, "keep one of them")
                members[key] = self._node(value_node, key_line, above)
            return Node(members, origin)
        if isinstance(node, yaml.SequenceNode):
            return Node([self._node(item, item.start_mark.line + 1, above) for item in node.value], origin)
        return Node(self._scalar(node, line), origin)

    def _scalar(self, node: yaml.Node, line: int) -> str | int | float | bool | None:
        if not isinstance(node, yaml.ScalarNode):
            self.fail("bad-yaml", "a key must be a plain word", line)
        try:
            value = self.constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.fail("bad-yaml", str(error).splitlines()[0], line)
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        return str(node.value)
