"""Options that name nodes: which nodes they mean, and whether they mean any.

An entry is a node's name or a pattern. The graphs of a speech or vision model call their nodes alike; there
``encoder.onnx:*/mlp/*``, a file's name and a colon before the entry, means nodes of that graph only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.files import graphs_of, read_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext
from runner.passes.graph.scopes import graphs_below


def meant(name: str, entries: Iterable[str]) -> bool:
    """Returns whether a node is among entries, each of which is a name or a pattern such as ``*/output/dense/*``."""
    return any(entry == name or fnmatchcase(name, entry) for entry in entries)


def entries_of(graph: str, entries: Iterable[str]) -> list[str]:
    """Returns the entries that concern the graph of that file name, without the names of files."""
    parted = [(entry, *entry.partition(".onnx:")) for entry in entries]
    return [rest if colon else entry for entry, file, colon, rest in parted if not colon or f"{file}.onnx" == graph]


def check_node_names(model: ModelHandle, asked: Mapping[str, Iterable[str] | None], context: PassContext) -> None:
    """Checks that every entry means a node of one of the model's graphs or their subgraphs.

    A tiny twin has fewer layers than the model that the names are of, and a component is one of several, so there they are only
    counted.

    Args:
        model: of kind `onnx` or `genai`.
        asked: names and patterns by the option that gives them.
        context: is told of a twin's or component's missing nodes.

    Raises:
        InvalidRecipe: an entry means nothing; the first five are told.
    """
    entries = [(option, entry) for option, given in asked.items() for entry in given or ()]
    if not entries:
        return
    names = {
        spelled
        for file in graphs_of(model)
        for graph in graphs_below(read_graph(model.folder / file, weights=False).graph)
        for node in graph.node
        if node.name
        for spelled in (node.name, f"{file}:{node.name}")
    }
    lost = [
        (option, entry) for option, entry in entries if entry not in names and not any(fnmatchcase(n, entry) for n in names)
    ]
    if lost and "component" in model.attributes:
        context.say(f"{len(lost)} of {len(entries)} named nodes are not in this component")
    elif lost and "twin_of" in model.attributes:
        context.say(f"{len(lost)} of {len(entries)} named nodes are not in the tiny twin")
    elif lost:
        raise InvalidRecipe(
            *(
                Problem("unknown-node", f"{option}: the graph has no node '{entry}'", remedy=did_you_mean(entry, names))
                for option, entry in lost[:5]
            )
        )
