"""In which form PyTorch runs an original model: its floating-point type, eager or compiled. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.errors import UsageError

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_COMPILED = "-compiled"


@dataclass(frozen=True)
class TorchForm:
    """How PyTorch runs a model.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``bf16``: of weights and of floating-point inputs.
        compiled: through torch.compile, with CUDA graphs where it runs on CUDA; eager otherwise.
    """

    precision: str = "fp32"
    compiled: bool = False

    @classmethod
    def parse(cls, text: str) -> TorchForm:
        """Returns the form that is written as ``fp16`` or ``fp16-compiled``.

        Raises:
            UsageError: there is none of that name.
        """
        precision = text.removesuffix(_COMPILED)
        if precision not in _DTYPES:
            remedy = f"one of {', '.join(_DTYPES)}; with {_COMPILED} behind it for torch.compile"
            raise UsageError("unknown-baseline", f"PyTorch runs no model as '{text}'", remedy)
        return cls(precision, text != precision)

    def __str__(self) -> str:
        return self.precision + (_COMPILED if self.compiled else "")

    @property
    def title(self) -> str:
        """Returns what people read: ``PyTorch fp16, compiled``."""
        return f"PyTorch {self.precision}{', compiled' if self.compiled else ''}"

    def dtype(self) -> torch.dtype:
        """Returns torch's type."""
        import torch

        found: torch.dtype = getattr(torch, _DTYPES[self.precision])
        return found
