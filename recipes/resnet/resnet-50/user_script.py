"""Calibration inputs of the quantised variant: pictures, scaled, cropped and normalised as the model was trained."""

from pathlib import Path

import numpy as np
import torch
from olive.data.registry import Registry
from PIL import Image

# Mean and standard deviation of ImageNet's colour channels; the shorter side is scaled to 1 / 0.875 of the crop.
MEAN, DEVIATION, CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875


@Registry.register_dataset()
def pictures(path, **_):
    """Returns the PNG and JPEG files of a folder that lies in this one."""
    files = sorted((Path(__file__).parent / path).iterdir())
    return [file for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg")]


@Registry.register_pre_process()
def normalised(dataset, size, **_):
    """Returns (inputs, label) pairs: pixel_values of shape [3, size, size], float32, and a label that nobody reads."""
    return [({"pixel_values": pixels(file, size)}, 0) for file in dataset]


def pixels(file, size):
    """Returns one picture as a float32 tensor [3, size, size]."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = round(size / CROP) / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    values = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    return torch.from_numpy(((values - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1).copy())
