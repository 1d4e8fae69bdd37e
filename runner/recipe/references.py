"""What a configuration refers to: the model, and systems, evaluators, data configs and providers by name."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import Place, Problem, did_you_mean
from runner.recipe.document import Node
from runner.recipe.migrate import EXECUTION_PROVIDERS


def unnamed_model(root: Node, place: Place) -> list[Problem]:
    """Returns the problem of a model that is to be read from a path or the hub, where the path is missing."""
    model = root.members.get("input_model", root)
    kind, path = model.members.get("type"), model.members.get("model_path")
    if (
        kind is None
        or kind.value not in ("HfModel", "ONNXModel", "DiffusersModel")
        or (path is not None and path.value not in (None, ""))
    ):
        return []
    where = path or model
    cause = f"'input_model.model_path' is missing{where.origin.blame}"
    return [
        Problem(
            "missing-key", cause, where.origin.place_within(place), "name a hub id, folder or file, here or with --model-path"
        )
    ]


def dangling(root: Node) -> list[Problem]:
    """Returns the references to systems, evaluators, data configs and providers that do not exist."""
    problems = []

    def named(node: Node | None, what: str, known: Sequence[str]) -> None:
        if node is not None and isinstance(node.value, str) and node.value not in known:
            problems.append(
                Problem(
                    "unknown-name", f"there is no {what} '{node.value}'", node.origin.place, did_you_mean(node.value, known)
                )
            )

    systems = list(root.members.get("systems", root).members) if "systems" in root.members else []
    evaluators = list(root.members["evaluators"].members) if "evaluators" in root.members else []
    data = [
        str(item.members["name"].value)
        for item in (root.members["data_configs"].items if "data_configs" in root.members else [])
        if "name" in item.members
    ]
    for key in ("host", "target"):
        named(root.members.get(key), "system", systems)
    named(root.members.get("evaluator"), "evaluator", evaluators)
    for path, leaf in root.leaves():
        if path and str(path[-1]).endswith("data_config") and isinstance(leaf.value, str):
            named(leaf, "data config", data)
        if len(path) > 1 and path[-2] == "execution_providers":
            named(leaf, "execution provider", EXECUTION_PROVIDERS)
    return problems
