"""Single values of a YAML text change, and nothing else does."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.recipe.yaml_text import scalar, with_member_before, with_value, without

TEXT = """\
# head
name: one  # the name
aliases: [first, second]
summary: >-
  Two
  lines.

# about the model
model:
  id: org/One
  sources:
    # the hub first
    - hub: org/One
    # then the package
    - package: p==1
      note: >-
        long
        text
  # behind
  size: 3
"""


def test_a_value_changes_and_its_comment_stays() -> None:
    changed = with_value(TEXT, ("name",), "two")
    assert changed == TEXT.replace("name: one  #", "name: two  #")
    assert with_value(TEXT, ("model", "size"), 4) == TEXT.replace("size: 3", "size: 4")


def test_a_flow_list_an_item_and_a_folded_text_change() -> None:
    assert with_value(TEXT, ("aliases",), []) == TEXT.replace("[first, second]", "[]")
    changed = with_value(TEXT, ("model", "sources", 0), {"hub": "org/Two"})
    assert yaml.safe_load(changed)["model"]["sources"][0] == {"hub": "org/Two"}
    assert "# then the package" in changed
    summary = with_value(TEXT, ("summary",), "Short: and plain")
    assert yaml.safe_load(summary) == {**yaml.safe_load(TEXT), "summary": "Short: and plain"}
    assert "\n\n# about the model\n" in summary


def test_a_path_that_leads_nowhere_changes_nothing() -> None:
    for path in (("nothing",), ("model", "nothing"), ("model", "sources", 9), ("name", "below")):
        assert with_value(TEXT, path, "x") == TEXT
        assert without(TEXT, path) == TEXT


def test_a_member_is_taken_out_with_its_comment() -> None:
    assert without(TEXT, ("aliases",)) == TEXT.replace("aliases: [first, second]\n", "")
    left = without(TEXT, ("model", "sources", 1))
    assert yaml.safe_load(left)["model"] == {"id": "org/One", "sources": [{"hub": "org/One"}], "size": 3}
    assert "# then the package" not in left
    assert "  # behind\n  size: 3\n" in left


def test_a_member_goes_above_another_and_its_comment() -> None:
    added = with_member_before(TEXT, "origin", "model", {"recipe": "x", "digest": "0"})
    assert 'lines.\norigin: {recipe: x, digest: "0"}\n\n# about the model\nmodel:' in added
    assert with_member_before(TEXT, "name", "model", "two") == with_value(TEXT, ("name",), "two")
    assert with_member_before("a: 1\n", "b", "nothing", 2) == "a: 1\nb: 2\n"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_what_is_written_reads_back(value: object) -> None:
    assert yaml.safe_load(f"key: {scalar(value)}\n") == {"key": value}
