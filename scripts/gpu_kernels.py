"""Times a model of pictures on this GPU against its original in PyTorch fp16, with the time of each kernel. Prints JSON last.

    python scripts/gpu_kernels.py --work FOLDER PIECE

PIECE is one of gpu_suite.py's that left a model in FOLDER/models. Between kernels the device may wait for the host: the seconds
of a call hold that, those of the kernels do not.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gpu_suite import PIECES

from runner.evaluation.device_forward import DeviceForward
from runner.evaluation.forward import OnnxForward
from runner.models.files import read_graph
from runner.models.handle import ModelHandle

BATCHES, CALLS, UNTIMED = (1, 8, 32), 30, 5
PROFILED = 5
KERNELS = 14  # that are told by name


def main() -> None:
    """Prints, for the original and the optimised model, seconds of a call by batch, and kernels at the largest batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="few calls, on any device")
    parser.add_argument("piece", metavar="PIECE")
    asked = parser.parse_args()
    (piece,) = [one for one in PIECES if one.name == asked.piece]
    model, source = asked.work / "models" / piece.name, asked.work / "random" / piece.recipe.partition("/")[0]
    batches = BATCHES[:1] if asked.smoke else BATCHES
    random = np.random.default_rng(0)
    (given,) = read_graph(model / "model.onnx", weights=False).graph.input
    shape = [one.dim_value for one in given.type.tensor_type.shape.dim[1:]]
    pictures = {size: random.standard_normal((size, *shape), dtype=np.float32) for size in batches}
    told = [{"side": "original", **_original(source, pictures)}] if source.is_dir() else []  # a tiny twin has no such folder
    told.append({"side": "optimised", **_optimised(model, pictures)})
    print(json.dumps({"piece": piece.name, "sides": told}))


def _original(source: Path, pictures: dict[int, np.ndarray[Any, Any]]) -> dict[str, Any]:
    import torch
    import transformers

    classifies = "Classification" in json.loads((source / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    module = auto.from_pretrained(source, dtype=dtype).to(device).eval()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def calls(size: int) -> Callable[[], None]:
        given = torch.from_numpy(pictures[size]).to(device, dtype)

        def call() -> None:
            with torch.inference_mode():
                module(pixel_values=given)
            wait()

        return call

    return _measured([(size, calls(size)) for size in pictures])


def _optimised(model: Path, pictures: dict[int, np.ndarray[Any, Any]]) -> dict[str, Any]:
    import torch

    form: Callable[..., OnnxForward] = DeviceForward if torch.cuda.is_available() else OnnxForward
    forward = form(ModelHandle("onnx", model, "model.onnx"), os.cpu_count() or 1)

    def calls(size: int) -> Callable[[], None]:
        prepared: Any = forward.prepare({"pixel_values": pictures[size]})
        return lambda: (forward.run(prepared), None)[1]

    return _measured([(size, calls(size)) for size in pictures])


def _measured(calls: Sequence[tuple[int, Callable[[], None]]]) -> dict[str, Any]:
    largest = max(calls, key=lambda one: one[0])[1]
    return {"seconds": {str(size): _seconds(call) for size, call in calls}, "kernels": _kernels(largest)}


def _seconds(call: Callable[[], None]) -> float:
    """Returns the median seconds of a call, behind some that do not count."""
    samples = []
    for _ in range(UNTIMED + CALLS):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return median(samples[UNTIMED:])


def _kernels(call: Callable[[], None]) -> dict[str, float]:
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
