"""Fine-tunes SmolLM2 by LoRA on this machine's GPU, on the task of finetune_figures.py. Prints JSON in its last line.

python scripts/gpu_finetune.py --work FOLDER [--steps 100]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from finetune_figures import MODEL, rows

BATCH, TOKENS = 16, 96


def main() -> None:
    """Trains and prints steps, seconds and the loss on held-out rows before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--smoke", action="store_true", help="a tiny twin on the CPU")
    asked = parser.parse_args()
    if not asked.work.is_dir():
        sys.exit(f"--work: there is no folder '{asked.work}'")
    data = asked.work / "pirate.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    command = [sys.executable, "-m", "runner", "finetune", "-m", MODEL, "--data_files", str(data), "--chat_template"]
    command += ["--max_steps", str(4 if asked.smoke else asked.steps), "--learning_rate", "1e-3", "--batch_size", str(BATCH)]
    command += ["--max_seq_len", str(TOKENS), "-o", str(asked.work / "models" / "lora-smollm2"), "--json"]
    command += ["--smoke"] if asked.smoke else ["--device", "gpu", "--torch_dtype", "bfloat16"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    told = json.loads(done.stdout)
    kept = {name: value for name, value in told.items() if isinstance(value, (int, float))}
    print(json.dumps({"method": "lora", "batch": BATCH, "tokens": TOKENS, **kept}))


if __name__ == "__main__":
    main()
