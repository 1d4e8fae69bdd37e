"""Writes constraints/cpu.txt: every version in this environment, after `make test` has passed with them."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "constraints" / "cpu.txt"
NOT_LOCKED = {"onnx-recipes", "pip", "setuptools", "wheel"}


def main() -> None:
    """Keeps the comments at the head of the file and replaces what follows. Local versions (`+cpu`) are left out."""
    head = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    versions = {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version.partition("+")[0]
        for found in importlib.metadata.distributions()
    }
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in NOT_LOCKED]
    LOCK.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    print(f"{LOCK}: {len(lines)} versions")


if __name__ == "__main__":
    main()
