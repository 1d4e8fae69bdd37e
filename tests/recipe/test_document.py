"""Documents read like the standard parsers read them, and every value knows its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import InvalidRecipe, Place
from runner.recipe.document import DEFAULT, Node, Origin, node_of, read_document

scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
documents = st.recursive(
    scalars, lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4), max_leaves=20
)
relaxed = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(tmp_path: Path, text: str, name: str = "c.json") -> Node:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", newline="")
    return read_document(file, name)


@relaxed
@given(value=documents, indent=st.sampled_from([None, 1, 4]), ascii_only=st.booleans())
def test_json_reads_what_json_writes(tmp_path: Path, value: object, indent: int | None, ascii_only: bool) -> None:
    surrogate_free = json.loads(json.dumps(value).encode("utf-8", "ignore"))
    try:
        text = json.dumps(surrogate_free, indent=indent, ensure_ascii=ascii_only)
        text.encode()
    except UnicodeEncodeError:  # lone surrogates have no UTF-8 form
        text = json.dumps(surrogate_free, indent=indent)
    assert read(tmp_path, text).plain() == json.loads(text)


@relaxed
@given(text=st.text(st.sampled_from('{}[]",:/*\\ \n\tabtrue0-1.e'), max_size=40))
def test_json_never_fails_but_with_a_place(tmp_path: Path, text: str) -> None:
    try:
        read(tmp_path, text)
    except InvalidRecipe as error:
        assert all(problem.place and problem.place.line for problem in error.problems)


@relaxed
@given(value=st.dictionaries(st.text(st.characters(categories=["L"]), min_size=1), documents, max_size=4))
def test_yaml_reads_what_yaml_writes(tmp_path: Path, value: dict[str, object]) -> None:
    text = yaml.safe_dump(value, allow_unicode=False)
    stringified = yaml.safe_load(text)
    assert json.dumps(read(tmp_path, text, "c.yml").plain(), sort_keys=True) == json.dumps(stringified, sort_keys=True)


@relaxed
@given(text=st.text(max_size=60))
def test_yaml_never_fails_but_with_a_place(tmp_path: Path, text: str) -> None:
    try:
        read(tmp_path, text.replace("\ud800", ""), "c.yml")
    except InvalidRecipe as error:
        assert all(problem.place for problem in error.problems)


def test_comments_are_blank_and_strings_keep_theirs(tmp_path: Path) -> None:
    text = '{ // first\n "url": "http://x/*y*/", /* two\n lines */ "n": 1 // last\n}\n'
    node = read(tmp_path, text)
    assert node.plain() == {"url": "http://x/*y*/", "n": 1}
    assert str(node.members["n"].origin) == "c.json:3"


def test_a_member_stands_on_the_line_of_its_key(tmp_path: Path) -> None:
    node = read(tmp_path, '{\n"a":\n\n{\n"b": [1,\n2]}}')
    assert [str(leaf.origin) for _, leaf in node.leaves()] == ["c.json:5", "c.json:6"]
    assert node.deepest(("a", "missing", "x")).origin.text == "c.json:2"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": 1,}', 1, "comma"),
        ('{"a": 1\n "b": 2}', 2, "',' or '}'"),
        ("{'a': 1}", 1, "double quotes"),
        ('{"a": True}', 1, "true"),
        ('{"a": 1, "a": 2}', 1, "twice"),
        ('{"a": "x\ny"}', 1, "control character"),
        ('{"a": 1', 1, "end of file"),
        ("", 1, "value was expected"),
        ('{"a": 1} {', 1, "behind the end"),
        ("[" * 500, 1, "deeper"),
    ],
)
def test_malformed_json_tells_line_and_cause(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        read(tmp_path, text)
    problem = caught.value.problems[0]
    assert problem.place is not None
    assert problem.place.line == line
    assert words in str(problem)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 1\na: 2", "a: &x\n  b: *x", "? [1, 2]\n: 3", "a: !!python/object:os.system {}", "\t- a"]
)
def test_malformed_or_hostile_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRecipe):
        read(tmp_path, text, "c.yaml")


def test_unreadable_files_are_told_not_raised(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(InvalidRecipe):
            read_document(path)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, '﻿{"a": 1}').plain() == {"a": 1}


def test_with_members_sets_and_removes() -> None:
    origin = Origin("here")
    node = node_of({"a": 1, "b": {"c": [2]}}, origin)
    changed = node.with_members(a=None, d=node_of(3, origin))
    assert changed.plain() == {"b": {"c": [2]}, "d": 3}
    assert node.plain() == {"a": 1, "b": {"c": [2]}}


def test_yaml_merges_are_laid_out(tmp_path: Path) -> None:
    assert read(tmp_path, "x: &x {a: 1}\ny:\n  <<: *x\n  b: 2\n", "c.yml").plain() == {"x": {"a": 1}, "y": {"a": 1, "b": 2}}


def test_an_origin_says_where_to_look_and_whom_to_blame() -> None:
    document = Place("a.json")
    told = [
        (origin.place_within(document), origin.blame) for origin in (Origin.of_file("b.json", 3), DEFAULT, Origin("--set x=1"))
    ]
    assert told == [(Place("b.json", 3), ""), (document, ""), (None, " (set by --set x=1)")]
