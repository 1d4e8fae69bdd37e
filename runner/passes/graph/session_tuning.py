"""Finds the session options under which this machine runs a model fastest, by measuring them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.components import component_names
from runner.models.files import carry
from runner.models.generation import genai_config
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput, graph_inputs, made_up, sequence_length
from runner.models.session import TUNED_FILE
from runner.passes.declaration import Pass, PassContext
from runner.passes.genai.session_config import write_options
from runner.recipe.config import DataConfig
from runner.recipe.options import PassOptions
from runner.targets.target import usable_cores

_MODES = {"0": "sequential", "1": "parallel"}
_SPINNING = "session.intra_op.allow_spinning"
# A change must win by this much in both rounds; less is within the noise of a machine that does other things as well.
_CLEARLY = 0.97
_ROUNDS = 2
_EVERYTHING = 99  # ONNX Runtime's own optimisation level

Mode = Literal["sequential", "parallel"]
Level = Literal[0, 1, 2, 99]


def _as_list(given: Any) -> Any:
    return given if given is None or isinstance(given, (list, tuple)) else [given]


class OrtSessionParamsTuningOptions(PassOptions):
    """Options of OrtSessionParamsTuning."""

    data_config: str | DataConfig | None = Field(None, description="inputs to measure with; made up when not given")
    cpu_cores: int | None = Field(None, ge=1, description="most threads to try; the usable cores by default")
    intra_thread_num_list: list[int] | None = Field(None, description="threads of one operator to try")
    inter_thread_num_list: list[int] | None = Field(None, description="operators at a time to try, with parallel execution")
    execution_mode_list: list[Mode] | None = Field(None, description="execution modes to try: sequential (0), parallel (1)")
    opt_level_list: list[Level] | None = Field(None, description="graph optimisation levels to try: 0, 1, 2, 99")
    spinning_list: list[bool] | None = Field(
        None, description="whether threads wait actively between operators; both by default"
    )
    extra_session_config: dict[str, str] | None = Field(None, description="session configuration entries for every trial")
    seconds: float = Field(1.0, gt=0, le=60, description="time to measure each trial for")
    batch_size: int = Field(1, ge=1, description="inputs at a time, of those that are made up")
    sequence_length: int = Field(128, ge=1, description="tokens of a text or prompt that is made up; the model's most at most")

    renamed: ClassVar[Mapping[str, str]] = {"execution_mode": "execution_mode_list", "opt_level": "opt_level_list"}
    retired: ClassVar[Mapping[str, str]] = {
        "device": "the target says it",
        "providers_list": "the target's provider is tuned",
        "provider_options_list": "the target's provider is tuned",
        "force_evaluate_other_eps": "the target's provider is tuned",
        "io_bind": "inputs and outputs of these models are small beside their work",
        "enable_cuda_graph": "CUDA graphs need fixed shapes",
        "trt_fp16_enable": "TensorRT is not among the targets",
        "enable_profiling": "profiling would disturb the measurement",
    }

    @field_validator("intra_thread_num_list", "inter_thread_num_list", "opt_level_list", "spinning_list", mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        return _as_list(given)

    @field_validator("execution_mode_list", mode="before")
    @classmethod
    def _modes(cls, given: Any) -> Any:
        listed = _as_list(given)
        return listed and [_MODES.get(str(one), one) for one in listed]


def tune(model: ModelHandle, options: OrtSessionParamsTuningOptions, context: PassContext) -> ModelHandle:
    """Carries the model on, with the best options that were measured and the machine that they were measured on.

    One property after the other is varied from the default, each trial in a process of its own; see `_CLEARLY`. Of a folder of
    onnxruntime-genai the time of a token counts, and what is best goes into genai_config.json as well.
    """
    if component_names(model):
        raise InvalidRecipe(
            Problem(
                "split-model",
                "OrtSessionParamsTuning: the model lies in several graphs",
                remedy="put ComposeOnnxModels before it, or tune before SplitModel",
            )
        )
    trials = _trials(model, options, context)
    # A program that opens a graph takes all cores, onnxruntime-genai by itself one or some.
    base: dict[str, Any] = {} if model.kind == "genai" else {"intra_op_num_threads": context.threads}
    if options.extra_session_config:
        base["config"] = dict(options.extra_session_config)
    trials.milliseconds(base)
    best = base
    for changes in _properties(model, options, context.threads):
        for change in changes:
            candidate = _changed(best, change)
            if candidate != best and trials.milliseconds(candidate) < trials.milliseconds(best) * _CLEARLY:
                best = candidate
    if best != base:
        trials.again(base, best)
        best = best if trials.milliseconds(best) < trials.milliseconds(base) * _CLEARLY else base
    default_ms, best_ms = trials.milliseconds(base), trials.milliseconds(best)
    context.say(f"{default_ms:.2f} ms with the defaults, {best_ms:.2f} ms tuned: {json.dumps(best)}")
    tuned = {
        "machine": {"cores": usable_cores(), "system": platform.platform()},
        "provider": context.target.provider,
        "options": best,
        "measured": trials.measured,
        "latency_ms": {"default": round(default_ms, 4), "tuned": round(best_ms, 4)},
        "trials": trials.record,
    }
    carry(model, context.output, exclude={TUNED_FILE}, graph=True)
    if model.kind == "genai":
        write_options(model.folder, context.output, best)
    (context.output / TUNED_FILE).write_text(json.dumps(tuned, indent=2) + "\n", encoding="utf-8")
    kept = {name: tuned[name] for name in ("machine", "provider", "options")}
    return ModelHandle(model.kind, context.output, model.file, model.task, {**model.attributes, "session_options": kept})


def _properties(model: ModelHandle, options: OrtSessionParamsTuningOptions, threads: int) -> list[list[dict[str, Any]]]:
    """Returns, property by property, the changes to try. onnxruntime-genai runs one operator after another only."""
    most = options.cpu_cores or threads
    counts = options.intra_thread_num_list or sorted({most, max(1, most // 2)}, reverse=True)
    spinning = options.spinning_list if options.spinning_list is not None else [False]
    tried: list[list[dict[str, Any]]] = [
        [{"intra_op_num_threads": count} for count in counts],
        [{"config": {_SPINNING: "1" if on else "0"}} for on in spinning],
        [{"graph_optimization_level": level} for level in options.opt_level_list or []],
    ]
    if model.kind != "genai" and ("parallel" in (options.execution_mode_list or []) or options.inter_thread_num_list):
        streams = options.inter_thread_num_list or [min(2, most)]
        tried.append([{"execution_mode": "parallel", "inter_op_num_threads": count} for count in streams])
    return tried


def _changed(options: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**options, **change}
    if "config" in change:
        merged["config"] = {**options.get("config", {}), **change["config"]}
    if merged.get("graph_optimization_level") == _EVERYTHING:
        del merged["graph_optimization_level"]
    return merged


def _trials(model: ModelHandle, options: OrtSessionParamsTuningOptions, context: PassContext) -> _Trials:
    seconds, provider = options.seconds / _ROUNDS, context.target.provider
    if model.kind == "genai":
        if "encoder" in genai_config(model.folder)["model"]:
            cause = "OrtSessionParamsTuning: of onnxruntime-genai's folders those of language models are tuned"
            raise InvalidRecipe(Problem("not-tuned", cause, remedy="tune its graphs one by one"))
        order = {"folder": str(model.folder), "prompt": options.sequence_length, "seconds": seconds}
        return _Trials("runner.passes.genai.generation_trial", order, "a token")
    inputs = _saved_inputs(model, options, context)
    order = {"inputs": str(inputs), "graph": str(model.path), "provider": provider, "seconds": seconds}
    return _Trials("runner.passes.graph.session_trial", order, "a run")


def _saved_inputs(model: ModelHandle, options: OrtSessionParamsTuningOptions, context: PassContext) -> Path:
    import numpy as np

    if options.data_config is None:
        wanted = graph_inputs(model.path)
        inputs = made_up(wanted, model.folder, _sizes(wanted, options, sequence_length(model.folder, options.sequence_length)))
    else:
        named = options.data_config
        given: Any = named.model_dump(mode="json") if isinstance(named, DataConfig) else named
        inputs = next(iter(context.data(given)))
    path = context.scratch / "inputs.npz"
    np.savez(path, **inputs)  # type: ignore[arg-type]
    return path


def _sizes(inputs: Sequence[GraphInput], options: OrtSessionParamsTuningOptions, tokens: int) -> dict[str, int]:
    """Sizes of the open axes of made-up inputs, by name."""
    sizes = {"sequence": tokens}
    for one in inputs:
        for at, dimension in enumerate(one.shape):
            if isinstance(dimension, str):
                if at == 0 or "batch" in dimension:
                    sizes[dimension] = options.batch_size
                elif dimension in ("sequence_length", "seq_len", "seq_length"):
                    sizes[dimension] = tokens
    return sizes


class _Trials:
    """Measures options, each in fresh processes, and keeps what was measured.

    Args:
        module: measures one trial; reads an order as JSON and prints milliseconds.
        order: what every trial is told beside its options.
        measured: what the milliseconds are the time of.
    """

    def __init__(self, module: str, order: Mapping[str, Any], measured: str) -> None:
        self._module, self._order = module, order
        self.measured = measured
        self._taken: dict[str, float] = {}

    def milliseconds(self, options: Mapping[str, Any]) -> float:
        """Returns the best median latency of all processes that ran under these options, at least two."""
        key = json.dumps(options, sort_keys=True)
        if key not in self._taken:
            self._taken[key] = min(self._measure(options) for _ in range(_ROUNDS))
        return self._taken[key]

    def again(self, *several: Mapping[str, Any]) -> None:
        """Measures options once more, in turn: what else the machine does then disturbs all of them alike."""
        for options in several * _ROUNDS:
            key = json.dumps(options, sort_keys=True)
            self._taken[key] = min(self.milliseconds(options), self._measure(options))

    @property
    def record(self) -> list[dict[str, Any]]:
        """Returns what was tried, in order, each with its latency."""
        return [{"options": json.loads(key), "latency_ms": round(taken, 4)} for key, taken in self._taken.items()]

    def _measure(self, options: Mapping[str, Any]) -> float:
        order = json.dumps({**self._order, "options": options})
        command = [sys.executable, "-m", self._module]
        done = subprocess.run(command, input=order, capture_output=True, text=True, check=False)
        if done.returncode:
            last: Sequence[str] = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RunFailed("trial-failed", f"a trial with {json.dumps(options)} failed: {last[0]}")
        return float(done.stdout.strip().splitlines()[-1])


PASS = Pass(
    name="OrtSessionParamsTuning",
    summary="Measures threads, spinning, execution mode and optimisation level, and keeps the fastest for this machine.",
    options=OrtSessionParamsTuningOptions,
    apply=tune,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnxruntime-genai"),
    version=2,
    data_options=("data_config",),
)
