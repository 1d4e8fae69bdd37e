"""Transformers folders with quantised weights in Olive's layout, the one that onnxruntime-genai's builder reads.

`config.json` has a `quantization_config` with `quant_method` "olive", the `bits`, `group_size` and `symmetric` of most modules
and `overrides` for the others. A quantised module keeps three tensors in place of its weight [rows, columns]:

    NAME.qweight  uint8    [rows, columns * bits / 8]          codes, several to a byte, the lower bits first
    NAME.scales   float32  [rows, columns / group_size]
    NAME.qzeros   uint8    [rows, groups * bits / 8, up]       codes of zero, packed likewise; absent where symmetric

A weight is (code - zero) * scale; where symmetric, zero is half of the codes. A group_size of -1 means all columns of a row.
An embedding and a head that are one quantised matrix are stored once, as the head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable
from runner.models.sharded_weights import Outlasts, ShardedWeights, mapped_weights

if TYPE_CHECKING:
    import torch

METHOD = "olive"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
WHOLE_ROW = -1  # as a group size
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@dataclass(frozen=True)
class Scheme:
    """How a matrix is quantised: bits of a code, columns that share a scale, and whether zero has a code of its own."""

    bits: int
    group_size: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """Returns the largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """Returns the code of zero where the scheme is symmetric."""
        return int(2 ** (self.bits - 1))


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantised weight; the tensors are those of the layout."""

    scheme: Scheme
    qweight: torch.Tensor
    scales: torch.Tensor
    qzeros: torch.Tensor | None

    @classmethod
    def of_codes(cls, scheme: Scheme, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> QuantizedMatrix:
        """Packs codes [rows, columns], scales and zeros [rows, groups]."""
        qzeros = None if scheme.symmetric else pack(zeros, scheme.bits)
        return cls(scheme, pack(codes, scheme.bits), scales.float().contiguous(), qzeros)

    def codes(self) -> torch.Tensor:
        """Returns the codes, uint8 [rows, columns]."""
        return unpack(self.qweight, self.scheme.bits, self.scales.shape[1] * self.scheme.group_size)

    def zeros(self) -> torch.Tensor:
        """Returns the codes of zero, uint8 [rows, groups]."""
        import torch

        if self.qzeros is None:
            return torch.full(self.scales.shape, self.scheme.middle, dtype=torch.uint8)
        return unpack(self.qzeros, self.scheme.bits, self.scales.shape[1])

    def dequantized(self) -> torch.Tensor:
        """Returns the weight, float32 [rows, columns]."""
        rows, groups = self.scales.shape
        blocks = self.codes().view(rows, groups, -1).float()
        blocks.sub_(self.zeros().float()[..., None]).mul_(self.scales[..., None])
        return blocks.view(rows, -1)

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Returns a copy of the rows from `start` up to `stop`, as a matrix of their own."""
        part = self.view(start, stop)
        zeros = None if part.qzeros is None else part.qzeros.clone()
        return QuantizedMatrix(self.scheme, part.qweight.clone(), part.scales.clone(), zeros)

    def view(self, start: int, stop: int) -> QuantizedMatrix:
        """Returns the rows from `start` up to `stop` where they lie."""
        zeros = None if self.qzeros is None else self.qzeros[start:stop]
        return QuantizedMatrix(self.scheme, self.qweight[start:stop], self.scales[start:stop], zeros)

    def at(self, places: torch.Tensor) -> QuantizedMatrix:
        """Returns a copy of the rows at places, int64 [rows], as a matrix of their own."""
        zeros = None if self.qzeros is None else self.qzeros[places]
        return QuantizedMatrix(self.scheme, self.qweight[places], self.scales[places], zeros)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Returns the tensors under the names that the layout gives those of module `name`."""
        named = {f"{name}.qweight": self.qweight, f"{name}.scales": self.scales}
        return named if self.qzeros is None else {**named, f"{name}.qzeros": self.qzeros}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs uint8 codes [rows, columns] to bytes [rows, columns * bits / 8, up], the first code in the lowest bits."""
    import torch

    share = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % share)).view(codes.shape[0], -1, share)
    packed = padded[..., 0].clone()
    for place in range(1, share):
        packed |= padded[..., place] << (place * bits)
    return packed.contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Returns the codes [rows, columns] that `pack` packed."""
    import torch

    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).view(packed.shape[0], -1)[:, :columns].contiguous()


@dataclass(frozen=True)
class Checkpoint:
    """A folder's weights.

    Attributes:
        default: the scheme of modules that have none of their own.
        matrices: quantised weights by the names of their modules.
        floats: all other tensors by their names.
        shared: the embedding and the head are one matrix.
    """

    default: Scheme
    matrices: Mapping[str, QuantizedMatrix]
    floats: Mapping[str, torch.Tensor]
    shared: bool

    @property
    def codes(self) -> Mapping[str, QuantizedMatrix]:
        """Returns what each module that is quantised reads; an embedding may read what the head does."""
        shared = self.shared and HEAD in self.matrices
        return {**self.matrices, EMBEDDING: self.matrices[HEAD]} if shared else self.matrices

    @property
    def count(self) -> int:
        """Returns how many weights there are."""
        coded = sum(one.scales.numel() * one.scheme.group_size for one in self.matrices.values())
        return int(coded + sum(one.numel() for one in self.floats.values()))

    def dequantized(self) -> dict[str, torch.Tensor]:
        """Returns the weights as a transformers module names them, all in floating point."""
        state = {**self.floats, **{f"{name}.weight": one.dequantized() for name, one in self.matrices.items()}}
        if self.shared and HEAD in self.matrices:
            state[f"{EMBEDDING}.weight"] = state[f"{HEAD}.weight"]
        return state

    def outlined(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns the weights likewise, with zeros of a type that take no memory in the place of those that are quantised."""
        import torch

        zero = torch.zeros(1, 1, dtype=dtype)
        shapes = {name: (len(one.scales), one.scales.shape[1] * one.scheme.group_size) for name, one in self.codes.items()}
        return {**self.floats, **{f"{name}.weight": zero.expand(shape) for name, shape in shapes.items()}}


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """Returns the `quantization_config` of a folder in this layout, None for any other folder."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") or {}
    return found if found.get("quant_method") == METHOD else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Returns the weights of a folder for which `quantization_of` is not None, mapped into memory.

    Raises:
        ModelUnavailable: a file cannot be read, or a quantised module lacks a tensor.
    """
    from safetensors import SafetensorError

    told = quantization_of(folder) or {}
    default = Scheme(told["bits"], told["group_size"], told["symmetric"])
    try:
        tensors = mapped_weights(folder)
        names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
        matrices = {name: _take(tensors, name, _scheme(default, told, name)) for name in names}
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelUnavailable("damaged-model", f"the quantised weights in {folder} cannot be read: {error}") from error
    tied = bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False))
    return Checkpoint(default, matrices, tensors, tied)


def _scheme(default: Scheme, told: Mapping[str, Any], name: str) -> Scheme:
    return Scheme(**{**asdict(default), **((told.get("overrides") or {}).get(name) or {})})


def _take(tensors: dict[str, torch.Tensor], name: str, scheme: Scheme) -> QuantizedMatrix:
    zeros = None if scheme.symmetric else tensors.pop(f"{name}.qzeros")
    codes = tensors.pop(f"{name}.qweight")
    if scheme.group_size == WHOLE_ROW:
        scheme = replace(scheme, group_size=codes.shape[1] * 8 // scheme.bits)
    return QuantizedMatrix(scheme, codes, tensors.pop(f"{name}.scales"), zeros)


def write_checkpoint(
    checkpoint: Checkpoint,
    source: Path,
    folder: Path,
    shards: ShardedWeights | None = None,
    unchanged: Collection[str] = (),
    outlasts: Outlasts | None = None,
) -> None:
    """Writes the weights into `folder`, with the configuration, tokenizer and other files of `source`.

    Args:
        checkpoint: the weights.
        source: the transformers folder that they were made from.
        folder: where they go.
        shards: has some of the weights already.
        unchanged: names of weights that lie in the files of `source` as they are here, perhaps in a narrower type.
        outlasts: see `ShardedWeights.take_over`.
    """
    shards = shards or ShardedWeights(folder)
    tensors = dict(checkpoint.floats)
    for name, matrix in checkpoint.matrices.items():
        tensors |= matrix.tensors(name)
    left = {name: tensor for name, tensor in tensors.items() if name not in shards.names}
    kept = {name: tensor for name, tensor in left.items() if name in unchanged}
    changes = {"quantization_config": _told(checkpoint), "tie_word_embeddings": checkpoint.shared}
    taken = kept.keys() - shards.take_over(source, kept, outlasts).keys()
    shards.close_file()
    _write({name: tensor for name, tensor in left.items() if name not in taken}, changes, source, folder, shards)


def write_weights(
    tensors: Mapping[str, torch.Tensor],
    config_changes: Mapping[str, Any],
    source: Path,
    folder: Path,
    shards: ShardedWeights | None = None,
) -> None:
    """Writes a transformers folder of these weights, its other files and its configuration as in `source`.

    Args:
        tensors: the weights by name.
        config_changes: entries that config.json has otherwise than that of the source.
        source: the transformers folder that they were made from.
        folder: where they go.
        shards: has the other weights already.
    """
    _write(tensors, config_changes, source, folder, shards or ShardedWeights(folder))


def _write(
    tensors: Mapping[str, torch.Tensor], changes: Mapping[str, Any], source: Path, folder: Path, shards: ShardedWeights
) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHT_FILES):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | dict(changes), indent=2), encoding="utf-8")
    seen = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:  # a matrix under two names is stored once
            shards.put({name: tensor})
        seen.add(place)
    shards.finish()


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    default = asdict(checkpoint.default)
    overrides = {}
    for name, matrix in checkpoint.matrices.items():
        own = {key: value for key, value in asdict(matrix.scheme).items() if value != default[key]}
        if default["group_size"] == WHOLE_ROW and matrix.scales.shape[1] == 1:
            del own["group_size"]
        if own:
            overrides[name] = own
    shared = checkpoint.shared and HEAD in checkpoint.matrices
    if shared and HEAD in overrides:
        overrides[EMBEDDING] = overrides[HEAD]
    return {
        "quant_method": METHOD,
        **default,
        "lm_head": HEAD in checkpoint.matrices,
        "embeds": shared or EMBEDDING in checkpoint.matrices,
        "overrides": overrides or None,
    }
