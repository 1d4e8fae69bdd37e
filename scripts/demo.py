"""The demo: a real language model becomes a small ONNX model, is measured against what it came from, and answers.

Runs the command `recipe` of the environment that runs this script, as anybody would type it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "smollm2-135m-instruct"
OUTPUT = ROOT / "models" / f"{RECIPE}-cpu-int4"
QUESTION = "What is the capital of France, and what is it known for?"


def main() -> None:
    """Runs, measures, asks, and says where everything lies."""
    recipe = shutil.which("recipe", path=str(Path(sys.executable).parent))
    if recipe is None:
        sys.exit("the runner is not installed beside this Python: run 'make setup'")
    for arguments in (("run", RECIPE), ("bench", RECIPE), ("try", str(OUTPUT), QUESTION)):
        print(f"\n$ recipe {' '.join(word if ' ' not in word else repr(word) for word in arguments)}", flush=True)
        code = subprocess.run([recipe, *arguments], cwd=ROOT, check=False).returncode
        if code:
            sys.exit(code)
    print(f"\nmodel    {OUTPUT}")
    print(f"receipt  {OUTPUT / 'receipt.json'}")
    print(f"report   {OUTPUT / 'report.html'}")


if __name__ == "__main__":
    main()
