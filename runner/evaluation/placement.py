"""Which execution provider runs a model's nodes, and how long they take: from a profile that ONNX Runtime writes."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from runner.errors import RecipeError
from runner.evaluation.subject_process import SubjectProcess
from runner.models.components import component_names, is_pipeline
from runner.models.handle import ModelHandle
from runner.models.inputs import made_up, model_inputs

_TOKENS = 16  # of the prompt, and as many are written behind it
_RUNS = 5  # of a graph
_KERNEL = "_kernel_time"
_COPIES = ("MemcpyToHost", "MemcpyFromHost")


def placement(model: ModelHandle, threads: int, provider: str, feed: str = "") -> dict[str, Any]:
    """Returns what ran where in a few runs of the model on a provider.

    Args:
        model: of kind `onnx` or `genai`.
        threads: threads of its operators.
        provider: execution provider that the model was made for.
        feed: .npz file with inputs; made-up ones where it is empty.

    Returns:
        `nodes` by provider; `seconds` of the host in the nodes' calls by provider (of a run, the median of each node);
        `operators`, the same by operator, the slowest first; and `fell_back`: operators that another provider ran, with the
        number of their nodes. All are empty for a model of several graphs,
        and for one that hears on a GPU.

    Raises:
        RecipeError: the model does not load or run on the provider.
    """
    if model.kind == "genai":
        events = _of_generation(model, threads, provider)
    elif model.kind == "onnx" and not is_pipeline(model) and not component_names(model):
        events = _of_graph(model, threads, provider, feed)
    else:
        events = []
    return summary(events, provider)


def placement_apart(model: ModelHandle, threads: int, provider: str, log: Path | None = None) -> dict[str, Any] | None:
    """Returns what `placement` does, from a process of its own; None where that failed, which the log tells of."""
    try:
        with SubjectProcess(model, "profiled", log) as profiled:
            return profiled.ask("placement", model=model.to_json(), threads=threads, provider=provider, feed="")
    except RecipeError:
        return None


def summary(events: Iterable[Mapping[str, Any]], provider: str) -> dict[str, Any]:
    """Returns what `placement` does, from the events of profiles. Copies between devices are no nodes of the model."""
    runs: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL) and told.get("provider"):
            key = told["provider"], told["op_name"], event.get("graph"), event["name"], told.get("node_index")
            runs[key].append(event["dur"] / 1e6)
    seconds: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    nodes: Counter[str] = Counter()
    fell_back: Counter[str] = Counter()
    for (where, operator, *_), taken in runs.items():
        seconds[where] += median(taken)  # the first run of a node chooses and loads its kernel
        operators[operator] += median(taken)
        nodes[where] += operator not in _COPIES
        fell_back[operator] += where != provider and operator not in _COPIES
    fell_back = +fell_back
    return {
        "nodes": dict(+nodes),
        "seconds": dict(seconds),
        "operators": dict(sorted(operators.items(), key=lambda one: -one[1])),
        "fell_back": dict(fell_back.most_common()),
    }


def _of_graph(model: ModelHandle, threads: int, provider: str, feed: str) -> list[dict[str, Any]]:
    import numpy as np

    from runner.evaluation.forward import OnnxForward
    from runner.models.session import open_session

    with tempfile.TemporaryDirectory(prefix="recipe-profile-") as folder:
        session = open_session(model, threads, (provider,), profile=Path(folder) / "graph")
        forward = OnnxForward(model, threads, provider, session)
        arrays = dict(np.load(feed)) if feed else made_up(model_inputs(model), model.folder, {"sequence": _TOKENS})
        prepared = forward.prepare(arrays)
        for _ in range(_RUNS):
            forward.run(prepared)
        session.end_profiling()
        return _events(Path(folder))


def _of_generation(model: ModelHandle, threads: int, provider: str) -> list[dict[str, Any]]:
    from runner.models.generation import GenerationSession
    from runner.models.transcription import hears

    on_cpu = provider == "CPUExecutionProvider"
    if hears(model.folder) and not on_cpu:  # onnxruntime-genai 0.18 crashes on a sound with options laid over its sessions'
        return []
    with tempfile.TemporaryDirectory(prefix="recipe-profile-") as folder:
        prefix = Path(folder) / "graph"
        if hears(model.folder):
            _hear(model, threads, prefix)
        else:
            session = GenerationSession(model.folder, threads, on_cpu=on_cpu, profile=prefix, graphs=False)
            list(session.generate_ids(list(range(1, _TOKENS + 1)), _TOKENS, do_sample=False, min_length=2 * _TOKENS))
            del session  # ONNX Runtime writes a profile when its session ends
        return _events(Path(folder))


def _hear(model: ModelHandle, threads: int, prefix: Path) -> None:
    import numpy as np

    from runner.models.sound_windows import SAMPLE_RATE
    from runner.models.transcription import TranscriptionSession

    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    TranscriptionSession(model.folder, threads, on_cpu=True, profile=prefix).tokens(noise.astype(np.float32), _TOKENS)


def _events(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of all profiles in a folder, each with the file that it stands in."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        found += [{**event, "graph": path.name} for event in json.loads(path.read_text(encoding="utf-8"))]
    return found
