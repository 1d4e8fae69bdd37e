"""What a model takes on disk."""

from __future__ import annotations

from pathlib import Path

from runner.evaluation.metric import Metric

# Files beside a model that describe a run of ours, and are no part of the model.
NOT_THE_MODEL = frozenset({"receipt.json", "report.html", "results.json"})


def size_on_disk(folder: Path) -> Metric:
    """Returns the bytes of all files of a model's folder: weights, graph, tokenizer and configuration."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_THE_MODEL]
    return Metric("size", float(sum(path.stat().st_size for path in files)), "bytes", False)
