"""Time of one call and calls per second, from samples that are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean

from runner.evaluation.metric import Metric
from runner.evaluation.metric_names import LATENCY_STATISTICS


def timed(call: Callable[[], object], warmup: int, repeats: int, pause: float = 0.0) -> tuple[float, ...]:
    """Returns the seconds that each of `repeats` calls took, after `warmup` calls that are not counted.

    Args:
        call: what is measured.
        warmup: calls before the first sample.
        repeats: samples.
        pause: seconds of sleep between samples.
    """
    for _ in range(warmup):
        call()
    samples = []
    for _ in range(repeats):
        if pause:
            time.sleep(pause)
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return tuple(samples)


def quantile(samples: Sequence[float], at: float) -> float:
    """Returns the quantile `at` (0 to 1) by linear interpolation between the sorted samples (numpy's default).

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("a quantile needs at least one sample")
    ordered = sorted(samples)
    place = at * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def statistic(samples: Sequence[float], name: str) -> float:
    """Returns the statistic called `name` in `LATENCY_STATISTICS`."""
    at = LATENCY_STATISTICS[name]
    return fmean(samples) if at is None else quantile(samples, at)


def latency(seconds: Sequence[float], name: str) -> Metric:
    """Returns the latency metric called `name` in `LATENCY_STATISTICS`, in milliseconds."""
    milliseconds = tuple(sample * 1e3 for sample in seconds)
    return Metric(f"latency_{name}", statistic(milliseconds, name), "ms", False, milliseconds)


def throughput(seconds: Sequence[float], batch: int, name: str) -> Metric:
    """Returns the samples per second of calls that carry `batch` samples each.

    ``avg`` is all samples over all time; the others are statistics of the rate of single calls.
    """
    rates = tuple(batch / sample for sample in seconds)
    value = batch * len(seconds) / sum(seconds) if name == "avg" else statistic(rates, name)
    return Metric(f"throughput_{name}", value, "samples/s", True, rates)
