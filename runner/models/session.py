"""Opens ONNX Runtime sessions: threads of this machine, tuned options, and the provider that was asked for or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed, TargetUnavailable
from runner.models.adapter_weights import inference_session
from runner.models.handle import ModelHandle
from runner.targets.target import target_named, usable_cores

if TYPE_CHECKING:
    import onnxruntime

# Beside a tuned model: what was found to be best, and on which machine. Another machine tunes for itself.
TUNED_FILE = "session_options.json"

# On CPU the kernel of SkipLayerNormalization is slower than Add and LayerNormalization by themselves; ONNX Runtime fuses them
# on loading (1.32; MiniLM at 1 x 128 takes 6 % longer with it in fp32, 14 % in dynamic int8).
_CPU = "CPUExecutionProvider"
_CPU_CONFIG = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}
_EXECUTION_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
_GRAPH_LEVELS = {0: "ORT_DISABLE_ALL", 1: "ORT_ENABLE_BASIC", 2: "ORT_ENABLE_EXTENDED", 99: "ORT_ENABLE_ALL"}


def raised_by_runtime(error: Exception) -> bool:
    """Says whether ONNX Runtime raised it: the binding has one class a status code, all of them straight below Exception."""
    return type(error).__module__.startswith("onnxruntime")


def tuned_options(model: ModelHandle) -> dict[str, Any]:
    """Returns the session options that were tuned for this model on a machine with as many cores; empty otherwise.

    Keys: ``intra_op_num_threads``, ``inter_op_num_threads``, ``execution_mode`` (``sequential``, ``parallel``),
    ``graph_optimization_level`` (0, 1, 2, 99) and ``config`` (session configuration entries, text to text).
    """
    tuned = model.attributes.get("session_options")
    path = model.folder / TUNED_FILE
    if tuned is None and path.is_file():
        tuned = json.loads(path.read_text(encoding="utf-8"))
    if not tuned or tuned.get("machine", {}).get("cores") != usable_cores():
        return {}
    options: dict[str, Any] = tuned.get("options", {})
    return options


def session_options(
    threads: int, tuned: dict[str, Any] | None = None, provider: str = "CPUExecutionProvider"
) -> onnxruntime.SessionOptions:
    """Returns session options: `threads` for one operator, unless tuning on this machine found something better.

    Args:
        threads: threads for one operator.
        tuned: what `tuned_options` returns.
        provider: the execution provider that the session is for.
    """
    import onnxruntime

    tuned = tuned or {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(tuned.get("intra_op_num_threads") or threads)
    options.inter_op_num_threads = int(tuned.get("inter_op_num_threads") or 0)
    if mode := tuned.get("execution_mode"):
        options.execution_mode = getattr(onnxruntime.ExecutionMode, _EXECUTION_MODES[mode])
    level = tuned.get("graph_optimization_level")
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _GRAPH_LEVELS[99 if level is None else level]
    )
    config = {**(_CPU_CONFIG if provider == _CPU else {}), **tuned.get("config", {})}
    if target_named(provider).in_order:
        options.enable_mem_pattern = False
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    for key, value in config.items():
        options.add_session_config_entry(key, str(value))
    return options


def open_session(
    model: ModelHandle,
    threads: int,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    provider_options: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Returns a session on the model's graph. It never runs on another provider than the first of those asked for.

    Args:
        model: an `onnx` handle.
        threads: threads for one operator, used where no tuning on this machine says otherwise.
        providers: execution providers, the one that must be used first.
        provider_options: options of the first provider, over those that its target always has.
        profile: where a profile of the runs goes; ONNX Runtime adds the time to the name.

    Raises:
        TargetUnavailable: the first provider is not in this installation, or did not accept the model.
        RunFailed: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    asked = providers[0]
    if asked == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()
    if asked not in onnxruntime.get_available_providers():
        raise TargetUnavailable(
            asked, "this installation of ONNX Runtime does not have it", "install the wheel that does; see 'recipe doctor'"
        )
    options = session_options(threads, tuned_options(model), asked)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    own = {**dict(target_named(asked).provider_options), **(provider_options or {})}
    try:
        session = inference_session(model, options, [(asked, own), *providers[1:]])
    except Exception as error:
        if not raised_by_runtime(error):
            raise
        raise RunFailed("invalid-graph", f"ONNX Runtime does not load {model.path.name}: {error}") from error
    if session.get_providers()[0] != asked:
        cause = f"ONNX Runtime could not start it and offers {session.get_providers()[0]} instead"
        raise TargetUnavailable(asked, cause, "'recipe doctor' tells what is missing")
    if asked != _CPU and hasattr(session, "disable_fallback"):  # a run that fails must not be repeated on the CPU
        session.disable_fallback()
    return session
