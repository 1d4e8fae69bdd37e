"""Reads image files of any kind as the RGB pictures that image processors take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import DataUnavailable

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_TO_SHORTEST = 200
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # what Pillow calls greys of two bytes


def read_image(file: Path) -> Image:
    """Returns a picture of mode RGB, upright: turned as a camera's note says. Of a moving picture it is the first frame.

    Greys of 16 bits are brought to 8, and transparency is left out, whatever colour stands below it.

    Raises:
        DataUnavailable: the file is no readable image, holds floating-point values, or is a mere line.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in _SIXTEEN_BITS:
                image = _eight_bits(image)
            elif image.mode == "F":
                raise DataUnavailable(f"{file} holds floating-point values", "save it with 8 or 16 bits a channel")
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # Pillow's, by format
        raise DataUnavailable(f"{file} is not a readable image: {error}") from error
    if max(rgb.size) > LONGEST_TO_SHORTEST * min(rgb.size):
        raise DataUnavailable(
            f"{file} is {rgb.width} x {rgb.height} pixels, a line rather than a picture",
            f"the longer side may be {LONGEST_TO_SHORTEST} times the shorter",
        )
    return rgb


def _eight_bits(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
