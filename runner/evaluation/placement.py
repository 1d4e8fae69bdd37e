"""Which execution provider runs a model's nodes, and how long they take: from a profile that ONNX Runtime writes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from runner.errors import RecipeError
from runner.evaluation.subject_process import SubjectProcess
from runner.models.components import is_pipeline, parts_of
from runner.models.diffusion import TASK as DRAWS
from runner.models.generation import genai_config, profile_overlay, threads_overlay
from runner.models.handle import ModelHandle
from runner.models.inputs import made_up, model_inputs
from runner.models.tasks import task_of

_TOKENS = 16  # of the prompt, and as many are written behind it
_STEPS = 2  # of a picture
_USES = 3  # of a model: the first chooses and loads kernels, and does not count
_KERNEL = "_kernel_time"
_CONFIG = "genai_config.json"
_COPIES = ("MemcpyToHost", "MemcpyFromHost")


def placement(model: ModelHandle, threads: int, provider: str, feed: str = "") -> dict[str, Any]:
    """Returns what ran where while a model was used on a provider: called, answering, hearing a second of sound, drawing.

    Args:
        model: of kind `onnx` or `genai`; of several graphs each is profiled.
        threads: threads of its operators.
        provider: execution provider that the model was made for.
        feed: .npz file with inputs; made-up ones where it is empty.

    Returns:
        `nodes` by provider; `seconds` of the host in the nodes' calls of one use when warm, by provider; `operators`, the
        same by operator, the slowest first; and `fell_back`: operators that another provider ran, with the number of their
        nodes.

    Raises:
        RecipeError: the model does not load or run on the provider.
    """
    if model.kind == "genai":
        events = _of_generation(model, threads, provider)
    elif not is_pipeline(model):
        events = _of_graph(model, threads, provider, feed)
    elif task_of(model) == DRAWS:
        events = _of_drawing(model, threads, provider)
    else:
        parts = parts_of(model)
        events = [{**one, "graph": name} for name in parts for one in _of_graph(parts[name], threads, provider, "")]
    return summary(events, provider)


def placement_apart(model: ModelHandle, threads: int, provider: str, log: Path | None = None) -> dict[str, Any] | None:
    """Returns what `placement` does, from a process of its own; None where that failed, which the log tells of."""
    try:
        with SubjectProcess(model, "profiled", log) as profiled:
            return profiled.ask("placement", model=model.to_json(), threads=threads, provider=provider, feed="")
    except RecipeError:
        return None


def summary(events: Iterable[Mapping[str, Any]], provider: str) -> dict[str, Any]:
    """Returns what `placement` does, from the events of profiles. Copies between devices are no nodes of the model.

    Args:
        events: of as many equal uses of the model as are profiled, in the order in which they happened.
        provider: that all nodes are asked to run on.
    """
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
        warm = median(taken[len(taken) // _USES :]) * len(taken) / _USES
        seconds[where] += warm
        operators[operator] += warm
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
        for _ in range(_USES):
            forward.run(prepared)
        session.end_profiling()
        return _events(Path(folder))


def _of_generation(model: ModelHandle, threads: int, provider: str) -> list[dict[str, Any]]:
    from runner.models.generation import GenerationSession
    from runner.models.transcription import hears

    on_cpu = provider == "CPUExecutionProvider"
    with tempfile.TemporaryDirectory(prefix="recipe-profile-") as folder:
        prefix = Path(folder) / "graph"
        if hears(model.folder):
            config = genai_config(model.folder)
            for overlay in (threads_overlay(config, threads, on_cpu=on_cpu), profile_overlay(config, prefix)):
                for part, told in overlay["model"].items():
                    config["model"][part].setdefault("session_options", {}).update(told["session_options"])
            _hear(_like(model.folder, Path(folder) / "model", config), on_cpu=on_cpu)
        else:
            session = GenerationSession(model.folder, threads, on_cpu=on_cpu, profile=prefix, graphs=False)
            for _ in range(_USES):
                list(session.generate_ids(list(range(1, _TOKENS + 1)), _TOKENS, do_sample=False, min_length=2 * _TOKENS))
            del session  # ONNX Runtime writes a profile when its session ends
        return _events(Path(folder))


def _like(model: Path, into: Path, config: Mapping[str, Any]) -> Path:
    """Returns a folder like the model's with another genai_config.json.

    Options that are laid over an encoder's replace all that it has, in onnxruntime-genai 0.18: it writes no profile then, or
    crashes on CUDA.
    """
    into.mkdir()
    for path in model.iterdir():
        if path.name != _CONFIG:
            _link(path, into / path.name)
    (into / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return into


def _link(path: Path, into: Path) -> None:
    try:
        into.symlink_to(path.resolve())
    except OSError:  # Windows lets few people make links
        shutil.copytree(path, into) if path.is_dir() else shutil.copy2(path, into)


def _hear(folder: Path, *, on_cpu: bool) -> None:
    import numpy as np

    from runner.models.sound_windows import SAMPLE_RATE
    from runner.models.transcription import TranscriptionSession

    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    session = TranscriptionSession(folder, None, on_cpu=on_cpu)
    for _ in range(_USES):
        session.tokens(noise.astype(np.float32), _TOKENS)


def _of_drawing(model: ModelHandle, threads: int, provider: str) -> list[dict[str, Any]]:
    from runner.models.diffusion_pipeline import DrawingPipeline, Wanted

    with tempfile.TemporaryDirectory(prefix="recipe-profile-") as folder:
        pipeline = DrawingPipeline(model, threads, provider, profile=Path(folder))
        for _ in range(_USES):
            pipeline.draw(Wanted("a house by the river", steps=_STEPS))
        del pipeline  # its sessions write their profiles
        return _events(Path(folder))


def _events(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of all profiles in a folder, each with the file that it stands in."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        found += [{**event, "graph": path.name} for event in json.loads(path.read_text(encoding="utf-8"))]
    return found
