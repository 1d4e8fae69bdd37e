"""A model script for tests of the engine: a tiny torch module whose loading can be told to misbehave.

The file `behaviour.txt` beside the script says how; `loads.txt` counts the loads.
"""

import os
import signal
import time
from pathlib import Path

HERE = Path(__file__).parent


def load(_path: str) -> object:
    """Returns the module, or does what behaviour.txt says."""
    import torch

    with (HERE / "loads.txt").open("a") as counter:
        counter.write("x")
    match (HERE / "behaviour.txt").read_text().strip():
        case "raise":
            raise RuntimeError("the loader is broken on purpose")
        case "system-exit":
            raise SystemExit(0)
        case "os-error":
            raise OSError("a file that is not there")
        case "memory":
            raise MemoryError
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(0)
        case "hang":
            time.sleep(600)
        case "hog":
            hog = bytearray(800_000_000)
            hog[::4096] = b"x" * len(hog[::4096])
            time.sleep(600)
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


def inputs(_model: object) -> object:
    """Returns example inputs."""
    import torch

    return torch.zeros(1, 16)
