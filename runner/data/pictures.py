"""Pictures for the user scripts of recipes: what they register with Olive's registry, which this runner serves as well.

Olive has no component that reads pictures. A script registers these two, so that the same configuration runs in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.image_file import read_image
from runner.data.local import IMAGE_FILES
from runner.errors import DataUnavailable

if TYPE_CHECKING:
    import torch


def pictures(path: str | Path, **_: Any) -> list[Path]:
    """Returns the pictures of a folder, in the order of their names.

    Raises:
        DataUnavailable: there is no such folder, or it holds no pictures.
    """
    folder = Path(path)
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_FILES) if folder.is_dir() else []
    if not found:
        raise DataUnavailable(f"{folder} has no pictures in it", f"pictures end in {', '.join(IMAGE_FILES)}")
    return found


def normalised(
    dataset: Sequence[Path],
    size: int,
    crop: float = 1.0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    deviation: Sequence[float] = (1.0, 1.0, 1.0),
    **_: Any,
) -> PreparedPictures:
    """Returns (inputs, label) pairs: pixel_values of shape [3, size, size], float32, and a label that nobody reads.

    A picture is read when its pair is asked for, which raises DataUnavailable where the file is none.

    Args:
        dataset: files of pictures.
        size: height and width of the input, in pixels.
        crop: share of the shorter side that is kept, cut from the middle.
        mean: what is taken off the red, green and blue values between 0 and 1.
        deviation: what they are then divided by.
    """
    return PreparedPictures(dataset, partial(_pixels, size=size, crop=crop, mean=mean, deviation=deviation))


@dataclass(frozen=True)
class PreparedPictures:
    """Pairs of inputs and label, made as they are asked for: thousands of pictures take no more memory than one.

    Attributes:
        files: the pictures.
        prepare: gives the pixels of a file.
    """

    files: Sequence[Path]
    prepare: Callable[[Path], torch.Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> tuple[dict[str, torch.Tensor], int]:
        return {"pixel_values": self.prepare(self.files[at])}, 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        return (self[at] for at in range(len(self)))


def _pixels(file: Path, size: int, crop: float, mean: Sequence[float], deviation: Sequence[float]) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image

    image = read_image(file)
    scale = round(size / crop) / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    values = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    return torch.from_numpy(((values - np.float32(mean)) / np.float32(deviation)).transpose(2, 0, 1).copy())
