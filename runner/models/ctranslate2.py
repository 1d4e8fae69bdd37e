"""Reads CTranslate2's model.bin: named arrays behind a short head, everything little-endian.

The layout is that of the binary versions 4 and later: version, name of the specification, its revision, how many variables; of
each its name, rank, dimensions, type, bytes and values. A text is led by its length in 16 bits, a final NUL included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = "model.bin"
_OLDEST = 4
_TYPES = ("float32", "int8", "int16", "int32", "float16")


@dataclass(frozen=True)
class Variables:
    """The content of a model.bin.

    Attributes:
        specification: name of the kind of model, such as ``WhisperSpec``.
        arrays: its arrays by name; they lie in the file until they are read.
    """

    specification: str
    arrays: dict[str, NDArray[Any]]

    def floats(self, name: str) -> NDArray[np.float32]:
        """Returns the array of that name in fp32.

        Raises:
            ModelUnavailable: there is none, or its values are those of a quantised weight.
        """
        import numpy as np

        if name not in self.arrays:
            raise ModelUnavailable("model-damaged", f"the model has no '{name}'", "fetch the model again")
        array = self.arrays[name]
        if array.dtype.kind != "f":
            raise ModelUnavailable(
                "quantised-weights", f"'{name}' is stored as {array.dtype}", "take a model whose weights are float16 or float32"
            )
        return array.astype(np.float32)


def read_variables(path: Path) -> Variables:
    """Returns what lies in a model.bin.

    Raises:
        ModelUnavailable: it is missing, truncated, too old, or none of CTranslate2's.
    """
    import numpy as np

    try:
        content = np.memmap(path, np.uint8, "r")
        return _read(_Reader(content, 0))
    except OSError as error:
        raise ModelUnavailable("model-not-found", f"{path} cannot be read: {error.strerror}", "fetch the model again") from None
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelUnavailable("model-damaged", f"{path} is no whole CTranslate2 model: {error}", "fetch it again") from None


@dataclass
class _Reader:
    content: NDArray[np.uint8]
    at: int

    def take(self, count: int) -> NDArray[np.uint8]:
        taken = self.content[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError(f"it ends at byte {len(self.content)}, in the middle of a value")
        self.at += count
        return taken

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)).tobytes())[0])

    def text(self) -> str:
        taken: bytes = self.take(self.number("H")).tobytes()
        return taken.rstrip(b"\0").decode()


def _read(reader: _Reader) -> Variables:
    version = reader.number("I")
    if not _OLDEST <= version < 2**16:
        raise ValueError(f"binary version {version}; {_OLDEST} and later are read")
    specification = reader.text()
    reader.number("I")  # the specification's revision
    arrays = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind = _TYPES[reader.number("B")]
        arrays[name] = reader.take(reader.number("I")).view(kind).reshape(shape)
    return Variables(specification, arrays)
