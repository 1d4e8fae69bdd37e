"""Times graphs on this GPU against their originals in PyTorch fp16, with the time of each kernel. Prints JSON in its last line.

    python scripts/gpu_kernels.py --work FOLDER PIECE

PIECE is one of gpu_suite.py's that left a graph in FOLDER/models, or a pipeline, of which every component is timed. Between
kernels the device may wait for the host: the seconds of a call hold that, those of the kernels do not. What both sides put out
is compared with what the original does in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_suite import PIECES
from random_models import PIPELINES, model_of

from runner.evaluation.device_forward import DeviceForward
from runner.evaluation.forward import OnnxForward, outputs_of
from runner.models.checkpoint import read_json
from runner.models.components import MANIFEST
from runner.models.diffusion import TASK, component_of, source_parts, variant_of
from runner.models.handle import ModelHandle
from runner.models.inputs import made_up, model_inputs

if TYPE_CHECKING:
    import torch

BATCHES, TOKENS, CALLS, UNTIMED = (1, 8, 32), 128, 30, 5
PROFILED = 5
KERNELS = 14  # that are told by name
# What a picture of 512 pixels takes of Stable Diffusion: the UNet reads it with its prompt and without.
SIZES = {"batch": 1, "height": 64, "width": 64, "sequence": 77, "steps": 1}
OWN_SIZES = {"unet": {"batch": 2}, "vae_encoder": {"height": 512, "width": 512}}

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Original:
    """The module that a graph came from.

    Attributes:
        load: returns it in fp32, on the CPU.
        call: gives it its inputs by name, and returns its outputs by name.
    """

    load: Callable[[], torch.nn.Module]
    call: Callable[[Any, dict[str, torch.Tensor]], Mapping[str, Any]]


def main() -> None:
    """Prints, for the original and the optimised model, seconds of a call by rows, and kernels at the most rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="small calls, on any device")
    parser.add_argument("piece", metavar="PIECE")
    asked = parser.parse_args()
    known = {one.name: one for one in PIECES if one.random and _timed(one.recipe.partition("/")[0])}
    if asked.piece not in known:
        parser.error(f"there is no piece '{asked.piece}' of pictures or text; there are {', '.join(known)}")
    piece = known[asked.piece]
    recipe = piece.recipe.partition("/")[0]
    model, source = asked.work / "models" / piece.name, asked.work / "random" / recipe
    if not (model / (MANIFEST if recipe in PIPELINES else "model.onnx")).is_file():
        sys.exit(f"there is no model in {model}: make it with gpu_suite.py --only {piece.name}")
    told: dict[str, Any] = {"piece": piece.name}
    if recipe in PIPELINES:
        told["components"] = {name: {"sides": sides} for name, sides in _components(model, source, asked.smoke)}
    else:
        told["sides"] = _graph(model, source, recipe, asked.smoke)
    print(json.dumps(told))


def _timed(recipe: str) -> bool:
    """Says whether a recipe's model is a pipeline, or one that answers in a call."""
    return recipe in PIPELINES or not model_of(recipe)[1].startswith("text-generation")


def _graph(folder: Path, source: Path, recipe: str, smoke: bool) -> list[dict[str, Any]]:
    from runner.models.torch_source import load_torch

    graph = ModelHandle("onnx", folder, "model.onnx")
    taken = model_inputs(graph)
    handle = ModelHandle("hf", source, None, model_of(recipe)[1])
    original = Original(lambda: load_torch(handle), lambda module, given: dict(module(**given).items()))
    inputs = {rows: made_up(taken, folder, {"batch": rows, "sequence": TOKENS}) for rows in BATCHES[: 1 if smoke else None]}
    return _sides(graph, inputs, original if source.is_dir() else None)  # a tiny twin has no such folder


def _components(folder: Path, source: Path, smoke: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    there = source.is_dir()
    handle = ModelHandle("diffusers", source, None, TASK, {"model_variant": variant_of(source)} if there else {})
    parts = source_parts(handle) if there else {}
    for name, facts in read_json(folder / MANIFEST)["components"].items():
        graph = ModelHandle("onnx", folder / name, PurePosixPath(facts["file"]).name)
        sizes = {**SIZES, **OWN_SIZES.get(name, {})}
        if smoke:
            sizes |= {edge: sizes[edge] // 4 for edge in ("height", "width")}
        inputs = {sizes["batch"]: made_up(model_inputs(graph), folder / name, sizes)}
        yield name, _sides(graph, inputs, _component(parts[name]) if there else None)


def _component(part: ModelHandle) -> Original:
    from runner.models.diffusion_torch import load_component

    described = component_of(part)

    def call(module: Any, given: dict[str, torch.Tensor]) -> Mapping[str, Any]:
        found = module(*(given[one.name] for one in described.inputs))
        return dict(zip(described.outputs, found, strict=True))

    return Original(lambda: load_component(part)[0], call)


def _sides(graph: ModelHandle, inputs: Mapping[int, Arrays], original: Original | None) -> list[dict[str, Any]]:
    """Returns what was measured of both sides; of the optimised one alone where the original is not there."""
    optimised = _Optimised(graph)
    if original is None:
        return [{"side": "optimised", **_measured(optimised, inputs)}]
    fewest = min(inputs)
    in_fp32 = _InTorch(original, half=False)
    exact = in_fp32.outputs(inputs[fewest])
    del in_fp32
    sides = {"original": _InTorch(original, half=True), "optimised": optimised}
    return [
        {"side": name, **_measured(side, inputs), "cosine": _cosines(exact, side.outputs(inputs[fewest]))}
        for name, side in sides.items()
    ]


class _InTorch:
    """The original on this machine's GPU, or its CPU where there is none, which computes in fp32."""

    def __init__(self, original: Original, *, half: bool) -> None:
        import torch

        self._call = original.call
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = torch.float16 if half and self._device == "cuda" else torch.float32
        self._module = original.load().to(self._device, self._dtype)

    def ready(self, arrays: Arrays) -> Callable[[], object]:
        """Returns a call on arrays that lie on the device; it waits for its end."""
        import torch

        placed = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        given = {name: one.to(self._dtype) if one.is_floating_point() else one for name, one in placed.items()}
        wait = torch.cuda.synchronize if self._device == "cuda" else lambda: None

        def call() -> Mapping[str, Any]:
            with torch.inference_mode():
                found = self._call(self._module, given)
            wait()
            return found

        return call

    def outputs(self, arrays: Arrays) -> Arrays:
        """Returns the outputs for arrays, in fp32."""
        import torch

        found: Any = self.ready(arrays)()
        return {name: one.float().cpu().numpy() for name, one in found.items() if isinstance(one, torch.Tensor)}


class _Optimised:
    """The graph, its inputs and outputs on the GPU where there is one."""

    def __init__(self, graph: ModelHandle) -> None:
        import torch

        form: Callable[..., OnnxForward] = DeviceForward if torch.cuda.is_available() else OnnxForward
        self._forward = form(graph, os.cpu_count() or 1)

    def ready(self, arrays: Arrays) -> Callable[[], object]:
        """Returns a call on arrays that lie on the device; it waits for its end."""
        prepared: Any = self._forward.prepare(arrays)
        return lambda: self._forward.run(prepared)

    def outputs(self, arrays: Arrays) -> Arrays:
        """Returns the outputs for arrays, in fp32."""
        return outputs_of(self._forward, arrays)


def _measured(side: _InTorch | _Optimised, inputs: Mapping[int, Arrays]) -> dict[str, Any]:
    seconds = {}
    for rows, arrays in sorted(inputs.items()):
        call = side.ready(arrays)
        seconds[str(rows)] = _seconds(call)
    return {"seconds": seconds, "kernels": _kernels(call)}


def _cosines(exact: Arrays, found: Arrays) -> dict[str, float]:
    """Returns how far each output points in the direction that it has in fp32, over all of its numbers together."""
    both = {name: (exact[name].ravel().astype(float), found[name].ravel().astype(float)) for name in exact if name in found}
    return {name: float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))) for name, (one, other) in both.items()}


def _seconds(call: Callable[[], object]) -> float:
    """Returns the median seconds of a call, behind some that do not count."""
    samples = []
    for _ in range(UNTIMED + CALLS):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return median(samples[UNTIMED:])


def _kernels(call: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds that each kernel takes of a call, and all of them as `total`; empty without a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED):
            call()
    found = {one.key: one.self_device_time_total / 1e6 / PROFILED for one in seen.key_averages() if one.self_device_time_total}
    slowest = sorted(found.items(), key=lambda one: -one[1])[:KERNELS]
    return {"total": sum(found.values()), **{name[:90]: seconds for name, seconds in slowest}}


if __name__ == "__main__":
    main()
