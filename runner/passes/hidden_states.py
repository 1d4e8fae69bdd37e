"""Hidden states of the text that a language model is calibrated on: in memory, or in files where memory is short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from runner.models.mapped_weights import empty_in_file, give_back
from runner.passes.declaration import PassContext

if TYPE_CHECKING:
    import torch

_SHARE = 0.04  # of the memory, that hidden states before and after a layer may take


class HiddenStates(Sequence["torch.Tensor"]):
    """The hidden states of each batch, [batch, tokens, width].

    Args:
        folder: takes files that are mapped into memory and vanish with the states; None keeps these in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: list[torch.Tensor] = []

    def append(self, states: torch.Tensor) -> None:
        """Keeps the states of one more batch."""
        self._kept.append(states if self._folder is None else _in_file(states, self._folder))

    def extend(self, batches: Iterable[torch.Tensor]) -> None:
        """Keeps the states of more batches."""
        for states in batches:
            self.append(states)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, at: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, at: int | slice) -> torch.Tensor | list[torch.Tensor]:
        return self._kept[at]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for states in self._kept:
            yield states
            if self._folder is not None:
                give_back(states)


def _in_file(states: torch.Tensor, folder: Path) -> torch.Tensor:
    mapped = empty_in_file(tuple(states.shape), states.dtype, folder).copy_(states)
    give_back(mapped)
    return mapped


def folder_for_states(module: Any, batches: Sequence[torch.Tensor], context: PassContext, layers: int = 2) -> Path | None:
    """Returns the folder for hidden states that would take much of the memory; None where they may stay in it.

    Args:
        module: the language model.
        batches: token ids, [batch, tokens].
        context: what the pass was given.
        layers: so many of them are kept at a time.
    """
    config = getattr(module.config, "text_config", module.config)
    size = 4 * layers * sum(batch.numel() for batch in batches) * int(config.hidden_size)
    if context.memory is None or size <= _SHARE * context.memory:
        return None
    context.say(f"{size / 1e6:.0f} MB of hidden states go to the disk, since memory is short")
    return context.scratch
