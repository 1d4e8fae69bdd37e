"""The peers, each in an environment of its own with the versions that work together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from olive_check import PACKAGES as OLIVE

from performance.contest import PeerFailed

INSTALL_SECONDS = 3600.0


@dataclass(frozen=True)
class Peer:
    """What is installed for a peer.

    Attributes:
        name: of its environment.
        packages: what pip is given.
        module: what must be importable afterwards.
    """

    name: str
    packages: tuple[str, ...]
    module: str


OPTIMUM = Peer(
    "optimum",
    ("torch==2.13.0", "optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.6", "onnxruntime==1.32.0", "pillow==12.0.0"),
    "optimum.onnxruntime",
)
OLIVE_AI = Peer("olive", tuple(OLIVE), "olive")
LLAMA_CPP = Peer("llama", ("llama-cpp-python==0.3.36",), "llama_cpp")  # builds llama.cpp: some ten minutes on two cores
PEERS = (OPTIMUM, OLIVE_AI, LLAMA_CPP)


def environment(peer: Peer, cache: Path) -> Path:
    """Returns the interpreter of a peer's environment, which is made when it is missing.

    Raises:
        PeerFailed: pip cannot install it, or it cannot be imported.
    """
    folder = cache / "peers" / peer.name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp, wanted = folder / "installed", "\n".join(peer.packages)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(peer.packages)} into {folder}", flush=True)
        if not python.exists():
            _told([sys.executable, "-m", "venv", str(folder)], f"no environment for {peer.name}")
        _told([str(python), "-m", "pip", "install", "--quiet", *peer.packages], f"pip cannot install {peer.name}")
        _told([str(python), "-c", f"import {peer.module}"], f"{peer.name} cannot be imported")
        stamp.write_text(wanted, encoding="utf-8")
    return python


def script(python: Path, name: str) -> str:
    """Returns the path of a command of an environment."""
    return str(python.with_name(name + python.suffix))


def _told(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise PeerFailed(f"{what}: {lines[-1] if lines else f'exit {done.returncode}'}")
