"""How much longer a run takes than the same library calls in one script: alternating, median of the ratios.

    python scripts/engine_overhead.py FOLDER [--rounds 5]

FOLDER is a transformers language model. A is `recipe run` of an int4 ModelBuilder configuration with an empty store; B is
a plain script that calls the builder and then compares the logits of both models on one prompt, as the engine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BY_HAND = """
import sys
import numpy as np
import torch
import onnxruntime_genai as og
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
sys.path.insert(0, str(Path(og.__file__).parent / "models"))
from onnxruntime_genai.models import builder

source, output, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
arguments = (None, source, output, "int4", "cpu", output + "-work")
builder.create_model(*arguments, **builder.parse_extra_options(*arguments, ["hf_token=false"]))

torch.set_num_threads(threads)
ids = AutoTokenizer.from_pretrained(source)("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids
with torch.inference_mode():
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()(ids).logits[0, -1].numpy()
config = og.Config(output)
config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}' % threads)
model = og.Model(config)
generator = og.Generator(model, og.GeneratorParams(model))
generator.append_tokens(ids.numpy().astype(np.int32))
found = generator.get_logits().reshape(-1, expected.shape[-1])[-1]
print(float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)))
"""


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Returns the wall seconds of a command; shows its output when it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return seconds


def main() -> None:
    """Measures and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        config = {
            "input_model": {"type": "HfModel", "model_path": str(arguments.folder.resolve()), "task": "text-generation"},
            "passes": {"build": {"type": "ModelBuilder", "precision": "int4"}},
        }
        (work / "config.json").write_text(json.dumps(config))
        (work / "by_hand.py").write_text(BY_HAND)
        environment = {**os.environ, "RECIPE_CACHE": str(work / "cache")}
        run = [sys.executable, "-m", "runner", "run", "--config", "config.json", "--output-dir", "a"]
        ratios = []
        timed(run, work, environment)  # the source's digests are remembered from here on
        for number in range(arguments.rounds):
            timed([sys.executable, "-m", "runner", "cache", "gc", "--all"], work, environment)
            engine = timed(run, work, environment)
            by_hand = timed(
                [sys.executable, "by_hand.py", str(arguments.folder.resolve()), f"b{number}", threads], work, environment
            )
            ratios.append(engine / by_hand)
            print(f"round {number + 1}: engine {engine:.2f} s, by hand {by_hand:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
