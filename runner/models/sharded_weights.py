"""Weights on their way into the safetensors files of a folder, so that few of them are in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.models.files import link

if TYPE_CHECKING:
    import torch

_FULL = 500_000_000  # bytes of weights that are written into one file
_LINKED_FROM = 1_000_000  # bytes of weights for which a file is linked, or closed so that it can be
_INDEX = "model.safetensors.index.json"

Outlasts = Callable[[Path], bool]  # says whether a file is there longer than what is made of it


def mapped_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights in the safetensors files of a folder, or those that its index names, mapped into memory.

    Raises:
        SafetensorError, OSError, KeyError: a file cannot be read, or lacks what the index names in it.
    """
    found: dict[str, torch.Tensor] = {}
    for file, names in _indexed(folder).items():
        mapped = _mapped(file)
        found |= mapped if names is None else {name: mapped[name] for name in names}
    return found


def mapped_file(file: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that one file has in its folder, mapped into memory: those that the index takes from it, or all.

    Raises:
        SafetensorError, OSError, KeyError: see `mapped_weights`.
    """
    mapped, names = _mapped(file), _indexed(file.parent).get(file)
    return mapped if names is None else {name: mapped[name] for name in names}


def _indexed(folder: Path) -> dict[Path, list[str] | None]:
    """Returns the files of a folder, each with the weights that are taken from it; None for all."""
    index = folder / _INDEX
    if not index.is_file():
        return dict.fromkeys(sorted(folder.glob("*.safetensors")))
    found: dict[Path, list[str] | None] = {}
    for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        names = found.setdefault(folder / file, [])
        if names is not None:
            names.append(name)
    return dict(sorted(found.items()))


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def write_zeros(file: Path, name: str, shape: tuple[int, ...]) -> None:
    """Writes a safetensors file of one weight of zeros in bf16; it takes no room where the disk knows files with holes."""
    end = 2 * math.prod(shape)
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, end]}}).encode()
    header += b" " * (-len(header) % 8)  # so that the weight lies on a multiple of eight bytes
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(stream.tell() + end)


class ShardedWeights:
    """The weights of a transformers folder while it is written; a file is closed as soon as it is full.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, torch.Tensor] = {}
        self._files: list[tuple[Path, list[str]]] = []
        self._bytes = 0
        self._linked_in_part = False

    def put(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes weights that belong together into one file.

        Returns:
            Those that have been written by now and were not before, mapped into memory from their file.
        """
        size = _size(tensors)
        written = self._write() if self._bytes + size > _FULL else {}
        self._waiting |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._bytes += size
        return written | (self._write() if self._bytes > _FULL else {})

    @property
    def names(self) -> set[str]:
        """Returns the names of all weights taken so far."""
        return {*self._waiting, *(name for _, names in self._files for name in names)}

    def take_over(
        self, folder: Path, tensors: Mapping[str, torch.Tensor], outlasts: Outlasts | None = None
    ) -> dict[str, torch.Tensor]:
        """Links the files of another folder whose weights all stay as they are.

        Args:
            folder: a transformers folder.
            tensors: the weights that stay.
            outlasts: a file for which it says so is linked for some of its weights as well: that takes no disk space then.

        Returns:
            Those that are not in the files taken over.
        """
        from safetensors import safe_open

        left = dict(tensors)
        for file, indexed in _indexed(folder).items():
            with safe_open(file, "pt") as stream:
                held = list(stream.keys())
            names = [name for name in (held if indexed is None else indexed) if name in left]
            if names and len(names) == len(held):
                link(file, self._next())
            elif outlasts and _size({name: left[name] for name in names}) >= _LINKED_FROM and outlasts(file):
                try:
                    os.link(file.resolve(), self._next())
                except OSError:  # another disk, or one without hard links
                    continue
                self._linked_in_part = True
            else:
                continue
            self._files.append((self._next(), names))
            for name in names:
                del left[name]
        return left

    def close_file(self) -> None:
        """Lets what comes from now on go to another file, so that this one can be linked when only that changes."""
        if self._bytes >= _LINKED_FROM:
            self._write()

    def finish(self) -> None:
        """Writes what waits, and gives the files the names that transformers knows."""
        self._write()
        if len(self._files) == 1 and not self._linked_in_part:
            self._files[0][0].rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for at, (file, names) in enumerate(self._files, 1):
            named = f"model-{at:05d}-of-{len(self._files):05d}.safetensors"
            file.rename(self._folder / named)
            weight_map |= dict.fromkeys(names, named)
        total = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self._folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _next(self) -> Path:
        return self._folder / f"part-{len(self._files):05d}.safetensors"

    def _write(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import save_file

        if not self._waiting:
            return {}
        file, names = self._next(), list(self._waiting)
        save_file(self._waiting, file, metadata={"format": "pt"})
        self._files.append((file, names))
        self._waiting, self._bytes = {}, 0
        return _mapped(file)


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors.values())
