"""Measures what this GPU can do at most: reading and copying its memory, and a matrix product. Prints JSON in its last line.

Without a GPU it ends with exit 1; --smoke tries it at small sizes on any device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from runner.targets.devices import nvidia_devices

GIGABYTES = 8
SIDE = 8192
REPEATS = 10


def main() -> None:
    """Prints bytes a second of reading and copying, and floating-point operations a second of a bf16 product."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="not needed here")
    parser.add_argument("--smoke", action="store_true", help="small, on any device")
    smoke = parser.parse_args().smoke
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not smoke:
        sys.exit("no GPU that PyTorch can use; --smoke tries this at small sizes on the CPU")
    rows = (GIGABYTES * 10**9 if not smoke else 10**6) // (2 * SIDE)
    matrix = torch.randn(rows, SIDE, device=device, dtype=torch.float16)
    vector = torch.randn(SIDE, device=device, dtype=torch.float16)
    copy = torch.empty_like(matrix)
    size = matrix.numel() * matrix.element_size()
    # Decoding reads every weight once, as a matrix times a vector does, or a maximum; the fastest of them is the limit.
    readers = (
        lambda: torch.mv(matrix, vector),
        lambda: torch.matmul(matrix, vector[:, None]),
        lambda: matrix.view(torch.int32).amax(),
        lambda: matrix.amax(dim=1),
    )
    reading = size / min(_seconds(one) for one in readers)
    copying = 2 * size / _seconds(lambda: copy.copy_(matrix))
    side = SIDE if not smoke else 64
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * side**3 / _seconds(lambda: one @ other)
    found = nvidia_devices()
    card: dict[str, Any] = {"name": found.devices[0].name, "driver": found.driver, "cuda": found.cuda} if found.devices else {}
    print(json.dumps({"card": card, "read": reading, "copy": copying, "bf16_product": product, "torch": torch.__version__}))


def _seconds(call: Callable[[], object]) -> float:
    """Returns the median seconds of a call, behind two that do not count."""
    import time

    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    samples = []
    for number in range(REPEATS + 2):
        wait()
        started = time.perf_counter()
        call()
        wait()
        samples += [time.perf_counter() - started] if number >= 2 else []
    return median(samples)


if __name__ == "__main__":
    main()
