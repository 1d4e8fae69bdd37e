"""Writes a whole model into a folder, in the type that its source is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.models.files import carry_companions
from runner.models.inputs import read_facts
from runner.models.sharded_weights import ShardedWeights


def write_whole(module: Any, source: Path, output: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes weights and configuration, and copies tokenizer and the like.

    Args:
        module: the transformers model.
        source: the folder that it was loaded from; its config.json names the type of the weights.
        output: the folder to write to.
        state: the weights, where they are not the module's own.
    """
    dtype = _stored_type(source)
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one tensor
    weights = {
        name: cast.setdefault((one.data_ptr(), one.shape), one.to(dtype) if one.is_floating_point() else one)
        for name, one in (state or module.state_dict()).items()
    }
    carry_companions(source, output)
    module.config.dtype = dtype
    module.save_pretrained(output, state_dict=weights)


class WrittenInParts:
    """Writes what `write_whole` writes, a part of the model at a time.

    Args:
        module: the transformers model.
        source: the folder that it was loaded from; its config.json names the type of the weights.
        output: the folder to write to.
    """

    def __init__(self, module: Any, source: Path, output: Path) -> None:
        self._module, self._source, self._output = module, source, output
        self._dtype = _stored_type(source)
        self._shards = ShardedWeights(output)

    def put(self, part: torch.nn.Module, name: str) -> None:
        """Takes the weights of a part of the model, which has that name in it; they are not looked at any more."""
        self._shards.put({f"{name}.{below}": self._cast(one) for below, one in part.state_dict().items()})

    def finish(self) -> None:
        """Writes the weights that are left, the configuration as the module has it, tokenizer and the like."""
        left = {name: one for name, one in self._module.state_dict().items() if name not in self._shards.names}
        for name, one in left.items():
            self._shards.put({name: self._cast(one)})
        self._shards.finish()
        carry_companions(self._source, self._output)
        self._module.config.dtype = self._dtype
        self._module.config.architectures = [type(self._module).__name__]
        self._module.config.save_pretrained(self._output)
        if self._module.can_generate():
            self._module.generation_config.save_pretrained(self._output)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _stored_type(source: Path) -> torch.dtype:
    facts = read_facts(source)
    named = facts.get("dtype") or facts.get("torch_dtype") or "float32"
    found: torch.dtype = getattr(torch, str(named).removeprefix("torch."), torch.float32)
    return found
