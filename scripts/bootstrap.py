"""Makes .venv with the tested versions and the runner in it. Needs nothing but Python's standard library.

A stamp in the environment remembers what it was made from, so that a second call does nothing and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST_PYTHON = (3, 11)
ATTEMPTS = 4
TARGETS = ("cpu", "cuda", "directml")


def main() -> None:
    """Creates or completes the environment."""
    options = _arguments()
    if sys.version_info < LEAST_PYTHON:
        sys.exit(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed (make setup PYTHON=python3.12)")
    import tomllib  # not in Pythons that are too old

    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    if unknown := [one for one in options.extras.split(",") if one not in known]:
        sys.exit(f"there is no extra '{unknown[0]}' in pyproject.toml (targets: {', '.join(TARGETS)}; all: {', '.join(known)})")
    venv: Path = options.venv.absolute()
    stamp = venv / ".installed-from"
    lock = _lock(options.extras)
    state = _state(options.extras, lock)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
        print(f"{venv} is up to date")
        return
    if not _python(venv).exists():
        print(f"creating {venv}", flush=True)
        _create(venv)
    _install(venv, options.extras, lock)
    stamp.write_text(state, encoding="utf-8")
    print(f"{venv} is ready")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="cpu,dev", help="extras of pyproject.toml")
    return parser.parse_args()


def _lock(extras: str) -> Path:
    """The versions that were tested for the target among the extras; those of the CPU where there is none."""
    target = next((one for one in extras.split(",") if one in TARGETS), TARGETS[0])
    return ROOT / "constraints" / f"{target}.txt"


def _state(extras: str, lock: Path) -> str:
    """What the environment is made from: the interpreter, the extras and the content of two files."""
    whole = hashlib.sha256(f"{sys.version}\n{extras}\n{ROOT}\n".encode())
    for path in (ROOT / "pyproject.toml", lock):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _create(venv: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=False)
    if done.returncode:
        sys.exit("Python's venv module did not work; on Debian and Ubuntu: apt install python3-venv")


def _install(venv: Path, extras: str, lock: Path) -> None:
    """Installs the runner in place with the locked versions; pip keeps what it downloaded before an error."""
    command = [str(_python(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5"]
    command += ["--constraint", str(lock), "--editable", f"{ROOT}[{extras}]"]
    for attempt in range(1, ATTEMPTS + 1):
        print(f"installing the runner and the locked versions into {venv}", flush=True)
        if subprocess.run(command, check=False).returncode == 0:
            return
        if attempt < ATTEMPTS:
            pause = 5 * attempt
            print(f"pip failed; trying again in {pause} s ({attempt} of {ATTEMPTS})", flush=True)
            time.sleep(pause)
    sys.exit(f"pip failed {ATTEMPTS} times; what it said stands above. A network or index that comes back mends most of it")


if __name__ == "__main__":
    main()
