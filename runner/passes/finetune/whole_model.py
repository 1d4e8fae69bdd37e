"""Writes a whole model into a folder, in the type that its source is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.models.files import carry_companions
from runner.models.inputs import read_facts


def write_whole(module: Any, source: Path, output: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes weights and configuration, and copies tokenizer and the like.

    Args:
        module: the transformers model.
        source: the folder that it was loaded from; its config.json names the type of the weights.
        output: the folder to write to.
        state: the weights, where they are not the module's own.
    """
    facts = read_facts(source)
    named = facts.get("dtype") or facts.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(named).removeprefix("torch."), torch.float32)
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one tensor
    weights = {
        name: cast.setdefault((one.data_ptr(), one.shape), one.to(dtype) if one.is_floating_point() else one)
        for name, one in (state or module.state_dict()).items()
    }
    carry_companions(source, output)
    module.config.dtype = dtype
    module.save_pretrained(output, state_dict=weights)
