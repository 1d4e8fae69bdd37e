"""Session parameters of a model on this machine: the run that measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.catalog.scaffold import Decision
from runner.compose.known import Known
from runner.compose.single_step import Chain
from runner.errors import UsageError
from runner.targets.target import Target

_TUNING = "OrtSessionParamsTuning"


def tuning(known: Known, options: Mapping[str, Any], target: Target) -> Chain:
    """Returns the run that finds the fastest session options.

    Args:
        known: an ONNX file, or a folder of onnxruntime-genai.
        options: options of the pass that were given.
        target: whose provider is tuned.

    Raises:
        UsageError: the model is no ONNX graph.
    """
    subject = known.subject
    if subject.kind != "onnx":
        raise UsageError(
            "not-a-graph",
            f"{subject.word} is no ONNX graph, and has no session",
            "'recipe export' or 'recipe optimize' makes one",
        )
    folder = subject.folder
    generates = folder is not None and (folder / "genai_config.json").is_file()
    decisions = (
        Decision("model", subject.word, "a folder of onnxruntime-genai" if generates else "an ONNX graph"),
        Decision(
            "measured", "tokens that it generates" if generates else "runs of the graph", "each trial in a process of its own"
        ),
        Decision("target", target.name, target.provider),
    )
    return Chain("tuned", "fp32", {"tune": {"type": _TUNING, **options}}, (), decisions)
