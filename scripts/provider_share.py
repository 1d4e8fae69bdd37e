"""Says which share of the nodes of finished models their provider runs, and fails where it is less than it should be.

    python scripts/provider_share.py FOLDER... --least 0.9 [--without-device]

FOLDER is what `recipe run` left. Where the target can be used on this machine, the receipt says what ran where
(`structure.placed`): a model that another provider ran in silence fails. Elsewhere nothing ran on it, which fails as well
unless --without-device is given; then the share of nodes for which the provider has kernels counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the runner of this clone

from runner.targets.target import target_named, what_is_missing  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line a model; returns 1 where one has too small a share, or nothing tells its share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--least", type=float, required=True, help="share of the nodes, from 0 to 1")
    parser.add_argument("--without-device", action="store_true", help="without the device the kernels count")
    asked = parser.parse_args(arguments)
    failed = False
    for folder in asked.folders:
        path = folder / "receipt.json"
        if not path.is_file():
            parser.error(f"there is no receipt in {folder}")
        share, told = share_of(json.loads(path.read_text(encoding="utf-8")), without_device=asked.without_device)
        bad = share is None or share < asked.least
        failed |= bad
        print(f"{'too little' if bad else 'enough'}: {folder}: {told}")
    return int(failed)


def share_of(receipt: dict[str, Any], *, without_device: bool = False) -> tuple[float | None, str]:
    """Returns the share of a model's nodes that its provider runs, None where nothing tells it; and that in words.

    Args:
        receipt: what receipt.json says.
        without_device: on a machine that cannot run the provider, the share of nodes with kernels counts.
    """
    provider, found = receipt["provider"], receipt.get("structure")
    if found is None:
        return None, f"{provider}: the receipt says nothing of its nodes"
    missing = what_is_missing(target_named(provider))
    if missing is None:
        nodes = (found.get("placed") or {}).get("nodes", {})
        if not nodes:
            return None, f"{provider} can be used here, and no profile tells what it ran"
        share = nodes.get(provider, 0) / sum(nodes.values())
        return share, f"{provider} ran {nodes.get(provider, 0)} of {sum(nodes.values())} nodes ({share:.1%})"
    if not without_device:
        return None, f"{provider} ran nothing here: {missing[0]}"
    served = found["nodes"] - sum(found["on_cpu"].values())
    share = served / found["nodes"] if found["nodes"] else 0.0
    return share, f"{provider} has kernels for {served} of {found['nodes']} nodes ({share:.1%}); it ran none: {missing[0]}"


if __name__ == "__main__":
    sys.exit(main())
