"""Compares what a model computes with what its source computes, on the same small inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import ModelUnavailable, RunFailed
from runner.evaluation.picture import PictureParity
from runner.evaluation.probe_inputs import NoProbe, Shape, probe_inputs, random_inputs
from runner.evaluation.probe_outputs import (
    CPU,
    DOES_NOT_RUN,
    GENERATED,
    genai_outputs,
    graph_outputs,
    graph_shapes,
    graph_types,
    open_graph,
    torch_outputs,
)
from runner.evaluation.retention import pooled, unit
from runner.evaluation.structure import missing_on_cpu
from runner.models.components import is_pipeline, parts_of
from runner.models.diffusion import source_parts
from runner.models.diffusion_torch import component_outputs
from runner.models.handle import ModelHandle
from runner.models.inputs import pools_first_token
from runner.targets.target import TARGETS, what_is_missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

SENTENCES = "sentence_embedding"  # as the surgeon PoolSentences names it
_NO_KERNEL = "Could not find an implementation for"  # how ONNX Runtime says it, in text that onnxruntime-genai hands on


class Parity:
    """The outputs of one source, against which the results of steps are compared.

    The source is run once for each shape of inputs that a graph asks for; its weights are not kept afterwards.

    Args:
        source: the model that the run starts from.
        threads: threads to compute with.
        target: name of the target that the models are made for. They run on its device where that can be used here, and else
            on the CPU, which need not have kernels for them. The source runs on the CPU in fp32.
    """

    def __init__(self, source: ModelHandle, threads: int, target: str = "cpu") -> None:
        self.source = source
        self.threads = threads
        self.target = target
        self.provider = CPU if what_is_missing(TARGETS[target]) else TARGETS[target].provider
        self._known: dict[tuple[tuple[str, Shape], ...], tuple[Arrays, Arrays]] = {}
        self._parts: dict[str, Parity] = {}

    def compare(self, model: ModelHandle) -> dict[str, Any]:
        """Returns how far the outputs of `model` lie from the source's.

        Returns:
            `numeric` True and, for each output of both, `max_abs_diff`, `cosine` and, for logits, `top1_agreement` (the share
            of positions or examples whose best class is the same), and `generated`, the number of tokens that
            onnxruntime-genai wrote with it; or `numeric` False and the `reason` why only the graph's loading was checked.

        Raises:
            RunFailed: ``output-does-not-run``, ``output-not-finite`` or ``output-shape-differs``.
            ModelUnavailable: an ONNX source does not load either.
        """
        if is_pipeline(model):
            return self._compare_parts(model)
        try:
            inputs, expected, found = self.outputs(model)
            outputs = {
                name: _difference(name, found[name], expected[other], inputs.get("attention_mask"))
                for name, other in output_pairs(found, expected).items()
            }
        except NoProbe as reason:
            if self.target == "cpu" and ("no kernel" in str(reason) or _NO_KERNEL in str(reason)):
                raise RunFailed(DOES_NOT_RUN, f"{model.path}: {reason}") from reason
            return {"numeric": False, "reason": str(reason), "outputs": {}}
        except RunFailed as error:
            if error.problems[0].rule == DOES_NOT_RUN and self.source.kind == "onnx":
                self._load_source()
            raise
        told = {
            "numeric": True,
            "provider": self.provider,
            "inputs": {name: list(array.shape) for name, array in inputs.items()},
            "outputs": outputs,
        }
        return {**told, "generated": found[GENERATED].size} if GENERATED in found else told

    def _load_source(self) -> None:
        """Blames the source for a result that does not run, where it does not load itself."""
        try:
            open_graph(self.source, self.threads)
        except RunFailed as error:
            remedy = (
                "start from a graph that onnxruntime loads; operators of other domains need a library that is not loaded here"
            )
            raise ModelUnavailable("model-damaged", error.problems[0].cause, remedy) from error

    def _compare_parts(self, model: ModelHandle) -> dict[str, Any]:
        """Returns the same of a pipeline, every name led by its component's; and how far the picture lies from the source's."""
        self._parts = self._parts or {
            name: Parity(part, self.threads, self.target) for name, part in source_parts(self.source).items()
        }
        found = {name: self._part(name, part) for name, part in parts_of(model).items()}
        told = {
            key: {f"{name}.{one}": value for name, part in found.items() for one, value in part.get(key, {}).items()}
            for key in ("inputs", "outputs")
        }
        reasons = [f"{name}: {part['reason']}" for name, part in found.items() if not part["numeric"]]
        if reasons:
            return {"numeric": False, "reason": "; ".join(reasons), **told}
        return {"numeric": True, **told, "picture": self.picture.compare(model, self.provider)}

    def _part(self, name: str, part: ModelHandle) -> dict[str, Any]:
        try:
            return self._parts[name].compare(part)
        except RunFailed as error:
            problem = error.problems[0]
            raise RunFailed(problem.rule, f"{name}: {problem.cause}", problem.remedy) from error

    @cached_property
    def picture(self) -> PictureParity:
        """The source's picture, drawn when a pipeline is first compared with it."""
        return PictureParity(self.source, self.threads)

    def outputs(self, model: ModelHandle) -> tuple[Arrays, Arrays, Arrays]:
        """Returns (inputs, the source's outputs, the model's outputs), each by name.

        Raises:
            NoProbe: no inputs are known, the CPU has no kernels for the model, or it is several.
            RunFailed: it does not run.
        """
        if is_pipeline(model):
            raise NoProbe("a pipeline is several models; its receipt compares each of them")
        if self.target != "cpu" and self.provider == CPU and (missing := missing_on_cpu(model)):
            raise NoProbe(f"not run on the CPU: no kernel for {missing}")
        if model.kind == "onnx":
            session = open_graph(model, self.threads, self.provider)
            inputs, expected = self._expected(graph_shapes(session))
            return inputs, *self._pooled_alike(inputs, expected, graph_outputs(session, inputs))
        inputs, expected = self._expected({})
        return inputs, expected, self._outputs(model, inputs)

    def _pooled_alike(self, inputs: Arrays, expected: Arrays, found: Arrays) -> tuple[Arrays, Arrays]:
        """Returns both outputs as vectors of length 1 where the graph pools the hidden states that the source gives."""
        hidden = expected.get("last_hidden_state")
        if hidden is None or list(found) != [SENTENCES] or found[SENTENCES].shape != (len(hidden), hidden.shape[-1]):
            return expected, found
        mask = inputs.get("attention_mask", np.ones(hidden.shape[:2]))
        vectors = pooled(hidden, mask, pools_first_token(self.source.folder))
        return {SENTENCES: vectors}, {SENTENCES: unit(found[SENTENCES])}

    def _expected(self, shapes: Mapping[str, Shape]) -> tuple[Arrays, Arrays]:
        fixed = tuple(
            sorted((name, tuple(axis if isinstance(axis, int) else None for axis in shape)) for name, shape in shapes.items())
        )
        if fixed not in self._known:
            inputs = self._inputs(shapes)
            self._known[fixed] = inputs, self._outputs(self.source, inputs)
        return self._known[fixed]

    def _inputs(self, shapes: Mapping[str, Shape]) -> Arrays:
        if self.source.kind != "onnx":
            return probe_inputs(self.source, shapes)
        session = open_graph(self.source, self.threads)
        own = {name: shapes.get(name, shape) for name, shape in graph_shapes(session).items()}
        try:
            return probe_inputs(self.source, own)
        except NoProbe:
            return random_inputs(own, graph_types(session))

    def _outputs(self, model: ModelHandle, inputs: Arrays) -> Arrays:
        if model.kind in ("hf", "pytorch"):
            return torch_outputs(model, inputs, self.threads)
        if model.kind == "diffusers":
            return component_outputs(model, inputs, self.threads)
        if model.kind == "onnx":
            return graph_outputs(open_graph(model, self.threads), inputs)
        if model.kind == "genai":
            try:
                return genai_outputs(model, inputs, self.threads, on_cpu=self.provider == CPU)
            except RunFailed as error:
                cause = error.problems[0].cause
                if _NO_KERNEL in cause:
                    raise NoProbe(f"not run on the CPU: {cause}") from error
                raise RunFailed(DOES_NOT_RUN, cause) from error
        raise NoProbe(f"a model of kind '{model.kind}' is not run")


def output_pairs(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Returns which output is compared with which: those of one name, or all in their order where none has the same.

    Raises:
        NoProbe: neither names nor shapes are the same.
    """
    names = {name: name for name in expected if name in found}
    if names:
        return names
    if [one.shape for one in found.values()] == [one.shape for one in expected.values()]:
        return dict(zip(found, expected, strict=True))
    raise NoProbe(f"its outputs ({', '.join(found)}) are named otherwise than the source's ({', '.join(expected)})")


def comparable(
    name: str, found: NDArray[Any], expected: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns both outputs without what stands at padding, which is nobody's answer.

    Raises:
        RunFailed: ``output-shape-differs`` or ``output-not-finite``.
    """
    if found.shape != expected.shape:
        raise RunFailed(
            "output-shape-differs", f"output '{name}' has shape {list(found.shape)}, the source's has {list(expected.shape)}"
        )
    if mask is not None and found.ndim > 2 and found.shape[:2] == mask.shape:
        found, expected = found[mask > 0], expected[mask > 0]
    if not np.isfinite(found).all():
        raise RunFailed(
            "output-not-finite",
            f"output '{name}' holds {int(np.isnan(found).sum())} NaN and {int(np.isinf(found).sum())} infinite values",
            "try a wider precision, or keep the nodes that overflow in fp32",
        )
    return found, expected


def _difference(name: str, found: NDArray[Any], expected: NDArray[Any], mask: NDArray[Any] | None) -> dict[str, float]:
    found, expected = comparable(name, found, expected, mask)
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    measured = {
        "max_abs_diff": float(np.abs(one - other).max(initial=0.0)),
        "cosine": float(one @ other) / lengths if lengths else float(np.array_equal(one, other)),
    }
    if name.startswith("logits"):
        measured["top1_agreement"] = float((found.argmax(-1) == expected.argmax(-1)).mean())
    return measured
