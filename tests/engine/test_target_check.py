"""A model made for a provider is looked through before the run counts as done, whatever the machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.targets.target import device_missing, target_named

SCRIPT = """
def load(_path):
    import torch
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())


def inputs(_model):
    import torch
    return torch.zeros(1, 3, 8, 8)
"""


def run(folder: Path, *flags: str, **conversion: Any) -> tuple[int, str]:
    """Runs a convolution through OnnxConversion for DirectML; returns exit code and what was printed."""
    (folder / "user_script.py").write_text(SCRIPT)
    accelerator = {"device": "gpu", "execution_providers": ["DmlExecutionProvider"]}
    config = {
        "input_model": {
            "type": "PyTorchModel", "model_script": "user_script.py", "model_loader": "load", "dummy_inputs_func": "inputs",
            "io_config": {"input_names": ["image"], "input_shapes": [[1, 3, 8, 8]], "output_names": ["features"]},
        },
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "target": "here",
        "passes": {"convert": {"type": "OnnxConversion", **conversion}},
        "output_dir": "out",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "runner", "run", "--config", "config.json", "--trust", "--smoke", *flags],
        check=False,
        cwd=folder,
        env={**os.environ, "RECIPE_CACHE": str(folder / "cache"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(device_missing(target_named("directml")) is None, reason="DirectML is here")
def test_a_graph_without_kernels_fails_the_run_each_time(tmp_path: Path) -> None:
    for _ in range(2):  # the step itself is stored, what is wrong with its result is not
        code, told = run(tmp_path, use_dynamo_exporter=True, target_opset=22)
        assert code == 1
        assert "no-kernel" in told
        assert "DmlExecutionProvider has no kernel for 1 Conv (version 22, float)" in told
        assert "at most 21 (target_opset)" in told
        assert not (tmp_path / "out-smoke").exists()
    code, told = run(tmp_path)
    assert code == 0, told
    assert "structure: 2 nodes, all with DirectML kernels" in told
    receipt = json.loads((tmp_path / "out-smoke" / "receipt.json").read_text())
    assert receipt["structure"]["nodes"] == 2
    assert receipt["steps"][-1]["parity"]["numeric"] is True
    code, told = run(tmp_path)
    assert code == 0
    assert "structure: 2 nodes, all with DirectML kernels" in told
    assert "up to date" in told
