"""What a search varies, checked value by value, and the one point of it that everything else takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.errors import Place, Problem
from runner.recipe.choices import Axis, at_point
from runner.recipe.document import Node
from runner.recipe.options import OptionsOf
from runner.recipe.steps import check_step, current_options
from runner.recipe.validate import check_members


def first_point(
    root: Node, axes: Sequence[Axis], options_of: OptionsOf, problems: list[Problem], notes: list[str], place: Place
) -> Node:
    """Returns the document with one pass a step and one value an option, where a search tries several; all are checked.

    Args:
        root: the migrated document.
        axes: what varies in it.
        options_of: see `runner.recipe.load.load_config`.
        problems: takes what is wrong with a value by itself.
        notes: takes how much there is to try.
        place: the document, for what has no line.
    """
    for axis in axes:
        for value in _further(axis):
            _check_value(at_point(root, axes, _leading_to(axes, axis, value)), axis, options_of, problems, place)
        what = f"values of '{axis.name}'" if axis.option else f"passes of '{axis.name}'"
        if axis.range is None and len(axis.nodes) < 2:
            continue
        told = str(axis.range) if axis.range else str(len(axis.nodes))
        notes.append(f"{axis.node.origin}: {told} {what}: 'recipe search' tries them, anything else takes the first")
    return at_point(root, axes, {})


def _further(axis: Axis) -> Sequence[Any]:
    """The values whose check can tell something new; of a range, its bounds tell."""
    if axis.range is not None:
        return (axis.range.high,) if not axis.range.whole else (int(axis.range.high),)
    return (axis.values or ())[1:]


def _leading_to(axes: Sequence[Axis], axis: Axis, value: Any) -> dict[str, Any]:
    return {axis.name: value} | ({axis.step: axis.alternative} if axis.alternative is not None else {})


def _check_value(point: Node, axis: Axis, options_of: OptionsOf, problems: list[Problem], place: Place) -> None:
    """Checks a value by itself: what does not go together with other options is met, and told, by the search."""
    node = point.members["passes"].members.get(axis.step)
    if node is None:
        return
    kind = node.members.get("type")
    known = options_of(str(kind.value))[0] if kind is not None else None
    if known is None or not axis.option:
        check_step(axis.step, node, options_of, problems, [], place)
        return
    pass_name, options_type = known
    written = node.members.get("options") or Node({}, node.origin)
    options = current_options(written, options_type, [], problems, place, f"{pass_name} ")
    check_members(options_type, options, problems, place, f"{pass_name} ")
