"""One trial of session options in a process of its own: reads an order as JSON, prints the median latency in milliseconds."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from runner.models.session import session_options

_WARM_UPS = 3
_FEWEST = 5


def measure(order: dict[str, Any]) -> float:
    """Returns the median time of a run, in milliseconds.

    Args:
        order: ``graph`` and ``inputs`` (files), ``provider``, ``options`` (as `session_options` takes them), ``seconds``.
    """
    if order["provider"] == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()
    options = session_options(1, order["options"], order["provider"])
    session = onnxruntime.InferenceSession(order["graph"], options, providers=[order["provider"]])
    with np.load(order["inputs"]) as stored:
        inputs = dict(stored)
    for _ in range(_WARM_UPS):
        session.run(None, inputs)
    taken: list[float] = []
    end = time.perf_counter() + order["seconds"]
    while time.perf_counter() < end or len(taken) < _FEWEST:
        started = time.perf_counter()
        session.run(None, inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


if __name__ == "__main__":
    sys.stdout.write(f"{measure(json.load(sys.stdin))}\n")
