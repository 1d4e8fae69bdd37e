"""Pictures for the user scripts of recipes: what they register with Olive's registry, which this runner serves as well.

Olive has no component that reads pictures. A script registers these two, so that the same configuration runs in both.
"""

from __future__ import annotations

from collections.abc import Sequence
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
) -> list[tuple[dict[str, torch.Tensor], int]]:
    """Returns (inputs, label) pairs: pixel_values of shape [3, size, size], float32, and a label that nobody reads.

    Args:
        dataset: files of pictures.
        size: height and width of the input, in pixels.
        crop: share of the shorter side that is kept, cut from the middle.
        mean: what is taken off the red, green and blue values between 0 and 1.
        deviation: what they are then divided by.

    Raises:
        DataUnavailable: a file is no picture.
    """
    return [({"pixel_values": _pixels(file, size, crop, mean, deviation)}, 0) for file in dataset]


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
