"""Sets single values of a document by their path: what `--set` and `--space` say."""

from __future__ import annotations

import json
from typing import Any

from runner.errors import UsageError, did_you_mean
from runner.recipe.config import RunConfig
from runner.recipe.document import Node, Origin, node_of
from runner.recipe.migrate import PASS_LEVEL, migrate_step

_EXAMPLES = {"--set": "passes.build.precision=int8", "--space": "passes.build.block_size=16,32"}


def apply_override(root: Node, text: str, flag: str = "--set") -> Node:
    """Returns the tree with one `path=value` set. The value is read as JSON, or else taken as text.

    Args:
        root: the document.
        text: what was typed.
        flag: the flag behind which it stood; behind ``--space`` stand several values with commas between them.
    """
    typed = f"{flag} {text}"
    path, equals, written = text.partition("=")
    if not equals or not path.strip():
        raise UsageError("bad-override", f"{typed}: this is not path=value", f"for example {flag} {_EXAMPLES[flag]}")
    try:
        value = json.loads(written)
    except json.JSONDecodeError:
        value = written
    if flag == "--space" and not isinstance(value, (list, dict)):
        value = [_scalar(one) for one in written.split(",")]
    parts = path.strip().split(".")
    if parts[0] == "engine" and len(parts) > 1:
        parts = parts[1:]
    if parts[0] == "passes" and len(parts) > 2 and parts[2] not in (*PASS_LEVEL, "options"):
        parts.insert(2, "options")
    node = node_of(value, Origin(typed))
    return _set(root, parts, _step(node) if parts[0] == "passes" and len(parts) == 2 else node, typed)


def _step(node: Node) -> Node:
    """Returns a whole step, or the passes that it chooses from, as the document has them: options in their own mapping."""
    if isinstance(node.value, list):
        return Node([_step(one) for one in node.items], node.origin)
    return node if isinstance(node.value, dict) and "options" in node.members else migrate_step(node, [])


def _scalar(written: str) -> Any:
    try:
        return json.loads(written)
    except json.JSONDecodeError:
        return written.strip()


def _set(node: Node, parts: list[str], value: Node, typed: str, above: str = "") -> Node:
    part, rest = parts[0], parts[1:]
    where = f"'{above}'" if above else "the configuration"
    if isinstance(node.value, list):
        if not part.isdigit() or int(part) >= len(node.value):
            names = [str(number) for number in range(len(node.value))]
            raise UsageError("bad-override", f"{typed}: {where} is a list and has no item '{part}'", did_you_mean(part, names))
        items = list(node.items)
        items[int(part)] = value if not rest else _set(items[int(part)], rest, value, typed, f"{above}.{part}".strip("."))
        return Node(items, node.origin)
    if not isinstance(node.value, dict):
        raise UsageError("bad-override", f"{typed}: {where} is a single value and has no member '{part}'")
    if not rest:
        return Node({**node.members, part: value}, node.origin)
    child = node.members.get(part)
    if child is None:
        if above == "passes":
            raise UsageError("unknown-step", f"{typed}: there is no step '{part}'", did_you_mean(part, node.members))
        if not above and part not in RunConfig.model_fields:
            raise UsageError("unknown-key", f"{typed}: {where} has no '{part}'", did_you_mean(part, RunConfig.model_fields))
        child = Node({}, value.origin)
    return Node({**node.members, part: _set(child, rest, value, typed, f"{above}.{part}".strip("."))}, node.origin)
