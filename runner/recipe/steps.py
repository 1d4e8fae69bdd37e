"""A step of a configuration, held against the options that its pass declares."""

from __future__ import annotations

import json
from typing import Any, Literal

from runner.errors import Place, Problem, did_you_mean
from runner.recipe.config import PassConfig
from runner.recipe.document import Node
from runner.recipe.olive_passes import elsewhere
from runner.recipe.options import OptionsOf, PassOptions
from runner.recipe.validate import check


def check_step(
    name: str, node: Node, options_of: OptionsOf, problems: list[Problem], notes: list[str], place: Place
) -> tuple[PassConfig | None, Node]:
    """Returns a step with its options as the pass's own model, None where something is wrong with it, and the step as written.

    Args:
        name: the step's name.
        node: what was written for it, after migration.
        options_of: see `runner.recipe.load.load_config`.
        problems: takes what is wrong, but for the step's own structure, which the check of the whole document tells.
        notes: takes what is left out.
        place: the document, for what has no line.
    """
    if isinstance(node.value, list):
        problems.append(
            Problem(
                "needs-search",
                f"'{name}' lists several passes{node.origin.blame}",
                node.origin.place_within(place),
                "name one pass; several are for 'recipe search', or for a configuration with a search_strategy",
            )
        )
        return None, node
    step = check(PassConfig, node, [], place)
    if step is None:
        return None, node  # the structure is reported by the check of the whole document
    known, passes = options_of(step.type)
    written_type = node.members["type"].origin
    if known is None:
        problems.append(
            Problem(
                "unknown-pass",
                f"'{name}': there is no pass '{step.type}'{written_type.blame}",
                written_type.place_within(place),
                elsewhere(step.type) or did_you_mean(step.type, passes),
            )
        )
        return None, node
    pass_name, options_type = known
    written = node.members.get("options") or Node({}, node.origin)
    options_node = current_options(written, options_type, notes, problems, place, f"{pass_name} ")
    node = node.with_members(type=Node(pass_name, written_type), options=options_node)
    options = check(options_type, options_node, problems, place, f"{pass_name} ")
    if options is None:
        return None, node
    components, node = _check_components(pass_name, node, options_type, problems, notes, place)
    return step.model_copy(update={"type": pass_name, "options": options, "components": components}), node


def _check_components(
    pass_name: str, node: Node, options_type: type[PassOptions], problems: list[Problem], notes: list[str], place: Place
) -> tuple[dict[str, dict[str, Any] | Literal[False]], Node]:
    """Returns what differs for single components, and the step with their options spelt as the pass does today."""
    given = node.members.get("components")
    if given is None or not isinstance(given.value, dict):
        return PassConfig(type=pass_name, components=given.plain() if given else {}).components, node
    shared = node.members["options"]
    found: dict[str, dict[str, Any] | Literal[False]] = {}
    spelt: dict[str, Node] = {}
    for name, child in given.members.items():
        spelt[name] = child
        if not isinstance(child.value, dict):
            found[name] = False
            continue
        own = spelt[name] = current_options(child, options_type, notes, problems, place, f"{pass_name} ")
        checked = check(options_type, shared.with_members(**own.members), problems, place, f"{pass_name} ")
        if checked is not None:
            whole = checked.model_dump(mode="json")
            found[name] = {key: whole[key] for key in own.members}
    return found, node.with_members(components=Node(spelt, given.origin))


def current_options(
    node: Node, options_type: type[PassOptions], notes: list[str], problems: list[Problem], place: Place, subject: str
) -> Node:
    """Returns options as the pass spells them today, without those that no longer act.

    An older name and today's may both be given where they say the same.

    Args:
        node: the options as they were written.
        options_type: the pass's options.
        notes: takes what is left out.
        problems: takes two names of one option that say different things.
        place: the file, for what has no line.
        subject: the pass's name and a space.
    """
    members: dict[str, Node] = {}
    given_as: dict[str, str] = {}
    for key, child in node.members.items():
        if key in options_type.retired:
            notes.append(f"{child.origin}: '{key}' does nothing here: {options_type.retired[key]}")
            continue
        name = options_type.renamed.get(key, key)
        other = members.get(name)
        if other is not None and not _same(other, child):
            older, newer = (f"'{one}'{held.origin.blame}" for one, held in ((given_as[name], other), (key, child)))
            problems.append(
                Problem(
                    "option-twice",
                    f"{subject}{newer} and {older} are two names of one option, and their values differ",
                    child.origin.place_within(place) or other.origin.place_within(place),
                    f"keep one of them; '{name}' is today's name",
                )
            )
        members[name] = child
        given_as[name] = key
    return Node(members, node.origin)


def _same(one: Node, other: Node) -> bool:
    return json.dumps(one.plain(), sort_keys=True) == json.dumps(other.plain(), sort_keys=True)
