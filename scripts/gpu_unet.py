"""Makes and measures a UNet of Stable Diffusion 1's shape with random weights, fused for CUDA in half precision.

    python scripts/gpu_unet.py --work FOLDER

Prints the results as JSON in its last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

# What diffusers' UNet2DConditionModel of Stable Diffusion 1 is made with.
FACTS = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
}  # fmt: skip
SMALL = {
    "sample_size": 16, "cross_attention_dim": 32, "attention_head_dim": 2, "norm_num_groups": 8, "layers_per_block": 1,
    "block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SCRIPT = '''"""A UNet with random weights."""

import json
from pathlib import Path

FACTS = json.loads(Path(__file__).with_name("unet.json").read_text())


def load(_path):
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)

    class Unet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = UNet2DConditionModel(**FACTS)

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    return Unet().eval()


def inputs(_model):
    import torch

    size, width = FACTS["sample_size"], FACTS["cross_attention_dim"]
    return (torch.randn(2, 4, size, size), torch.tensor([500.0, 500.0]), torch.randn(2, 77, width))
'''


def main() -> None:
    """Writes the configuration, runs `recipe bench` on it, and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="a small one on the CPU")
    parser.add_argument("--make", action="store_true", help="make the model, and measure nothing")
    asked = parser.parse_args()
    folder = asked.work / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    facts = SMALL if asked.smoke else FACTS
    (folder / "unet.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "user_script.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "olive_config.json").write_text(json.dumps(_config(facts, asked.smoke), indent=2), encoding="utf-8")
    command = [sys.executable, "-m", "runner", "run" if asked.make else "bench", "--config", str(folder / "olive_config.json")]
    command += ["--trust", "--json", "--output-dir", str(asked.work / "models" / "unet-fp16")]
    if not asked.make:
        command += ["--rounds", "3", *(() if asked.smoke else ("--baseline", "fp16"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 4):
        sys.exit(done.returncode)
    print(json.dumps(json.loads(done.stdout)))


def _config(facts: dict[str, object], smoke: bool) -> dict[str, object]:
    size, width = facts["sample_size"], facts["cross_attention_dim"]
    shapes = [[2, 4, size, size], [2], [2, 77, width]]
    names = ["sample", "timestep", "encoder_hidden_states"]
    device, provider = ("cpu", "CPUExecutionProvider") if smoke else ("gpu", "CUDAExecutionProvider")
    fusions = ("enable_group_norm", "enable_skip_group_norm", "enable_nhwc_conv", "enable_packed_qkv", "enable_packed_kv",
               "enable_bias_splitgelu", "enable_bias_add")  # fmt: skip
    fuse = {"type": "OrtTransformersOptimization", "model_type": "unet", "opt_level": 0, "use_gpu": True, "float16": True,
            "keep_io_types": True, "optimization_options": dict.fromkeys(fusions, True)}  # fmt: skip
    return {
        "input_model": {
            "type": "PyTorchModel", "model_script": "user_script.py", "model_loader": "load", "dummy_inputs_func": "inputs",
            "io_config": {"input_names": names, "input_shapes": shapes, "output_names": ["noise"],
                          "dynamic_axes": {name: {"0": "batch"} for name in (*names, "noise")}},
        },
        "systems": {"here": {"type": "LocalSystem", "accelerators": [{"device": device, "execution_providers": [provider]}]}},
        "target": "here",
        "passes": {
            "convert": {"type": "OnnxConversion", "use_dynamo_exporter": False, "target_opset": 17},
            **({} if smoke else {"fuse": fuse}),
        },
        "output_dir": "out",
    }  # fmt: skip


if __name__ == "__main__":
    main()
