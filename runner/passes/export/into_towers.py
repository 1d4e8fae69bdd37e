"""Cuts the graph of a model that scores pictures against texts where its embeddings are: two towers, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import InvalidRecipe, Problem
from runner.models.components import Manifest
from runner.models.files import ExternalData, write_graph
from runner.models.towers import COMPARISON, TOWERS

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def write_towers(proto: onnx.ModelProto, folder: Path, external: ExternalData) -> tuple[str, ...]:
    """Writes the three graphs and the manifest of their chain, and returns the graphs' names in the order in which they run.

    Args:
        proto: the exported graph with its weights.
        folder: where they go.
        external: how weights are stored; a file for each graph.

    Raises:
        InvalidRecipe: the model gives no embeddings of texts and of pictures.
    """
    import onnx_ir as ir

    outputs = tuple(value.name for value in proto.graph.output)
    embeddings = tuple(tower.output for tower in TOWERS)
    if missing := [name for name in embeddings if name not in outputs]:
        raise InvalidRecipe(
            Problem(
                "no-towers",
                f"OnnxConversion: the model has no two towers: its graph gives {', '.join(outputs)}, and no {missing[0]}",
                remedy="leave split_towers out, or set the task zero-shot-image-classification",
            )
        )
    whole = ir.serde.deserialize_model(proto)
    inputs = tuple(str(value.name) for value in whole.graph.inputs)
    wanted = [(tower.file, [name for name in tower.inputs if name in inputs], [tower.output]) for tower in TOWERS]
    wanted.append((COMPARISON, list(embeddings), [name for name in outputs if name not in embeddings]))
    for file, given, found in wanted:
        write_graph(_part(whole, given, found), folder / file, external)
    names = tuple(file for file, _, _ in wanted)
    Manifest(names, inputs, outputs).write(folder)
    return names


def _part(whole: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    import onnx_ir as ir

    graph = ir.convenience.extract(whole.graph, inputs, outputs)
    return ir.serde.serialize_model(ir.Model(graph, ir_version=whole.ir_version, functions=tuple(whole.functions.values())))
