"""Draws the pictures that vision recipes have as sample data: always the same ones, from formulas and seeded randomness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 224
SAMPLES = Path(__file__).parents[1] / "templates" / "samples"
Picture = NDArray[np.float64]
Random = np.random.Generator

_rows, _columns = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1.0)


def clouds(random: Random, slope: float = 1.8) -> Picture:
    """Returns noise whose amplitude falls with frequency as in photographs, each colour channel a mixture of two fields."""
    frequencies = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :])
    frequencies[0, 0] = 1.0 / SIZE
    fields = []
    for _ in range(2):
        phases = np.exp(2j * np.pi * random.random(frequencies.shape))
        field = np.fft.irfft2(phases / frequencies**slope, s=(SIZE, SIZE))
        fields.append((field - field.mean()) / field.std())
    mixture = random.uniform(-1, 1, size=(3, 2))
    return np.clip(0.45 + 0.16 * np.stack([row[0] * fields[0] + row[1] * fields[1] for row in mixture], axis=-1), 0, 1)


def landscape(random: Random) -> Picture:
    """Returns a sky above hills above water."""
    sky = np.array([0.55, 0.7, 0.9]) * (1 - 0.4 * _rows[..., None])
    picture = sky + 0.1 * (clouds(random) - 0.45)
    for depth in range(3):
        waves = random.uniform(2, 9, 3)
        height = 0.4 + 0.15 * depth + 0.05 * sum(np.sin(wave * _columns[0] * 3 + random.uniform(0, 6)) for wave in waves)
        picture[_rows > height[None, :]] = np.array([0.2, 0.38, 0.22]) * random.uniform(0.5, 1.3, 3)
    return np.clip(picture + random.normal(0, 0.008, picture.shape), 0, 1)


def shapes(random: Random) -> Picture:
    """Returns discs, boxes and triangles on a soft background."""
    image = Image.fromarray((255 * clouds(random, 2.4)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = random.integers(0, SIZE - 40, 2).tolist()
        width, height = random.integers(20, 90, 2).tolist()
        colour = tuple(random.integers(20, 235, 3).tolist())
        box = (left, top, left + width, top + height)
        kind = random.integers(3)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(left, top + height), (left + width, top + height), (left + width // 2, top)], fill=colour)
    return np.asarray(image) / 255


def cells(random: Random) -> Picture:
    """Returns patches of colour around random points, shaded from their middle: a wall of stones."""
    points = random.random((40, 2))
    distance = np.sqrt((_rows[..., None] - points[:, 0]) ** 2 + (_columns[..., None] - points[:, 1]) ** 2)
    nearest = distance.argmin(axis=-1)
    edge = np.sort(distance, axis=-1)[..., 1] - distance.min(axis=-1)
    colours = random.uniform(0.25, 0.75, (40, 1)) + random.normal(0, 0.05, (40, 3))
    return np.clip(colours[nearest] * np.clip(0.4 + 20 * edge, 0, 1)[..., None], 0, 1)


def stripes(random: Random) -> Picture:
    """Returns two crossed gratings in colour, as on cloth."""
    angle, first, second = random.uniform(0, np.pi), random.uniform(10, 60), random.uniform(5, 30)
    along, across = (_rows * np.cos(angle) + _columns * np.sin(angle), _columns * np.cos(angle) - _rows * np.sin(angle))
    warp, weft = 0.5 + 0.5 * np.sin(first * along), 0.5 + 0.5 * np.sin(second * across)
    one, other = random.uniform(0, 1, 3), random.uniform(0, 1, 3)
    return np.clip(0.15 + 0.35 * (warp[..., None] * one + weft[..., None] * other), 0, 1)


def rings(random: Random) -> Picture:
    """Returns rings around an off-centre point, lit from one side: the cut of a tree, or a plate."""
    centre = random.uniform(0.3, 0.7, 2)
    radius = np.hypot(_rows - centre[0], (_columns - centre[1]) * random.uniform(0.7, 1.4))
    wood = 0.5 + 0.25 * np.sin(radius * random.uniform(40, 120) + 2 * (clouds(random)[..., 0] - 0.45) * 10)
    light = 0.6 + 0.4 * _columns
    return np.clip((wood * light)[..., None] * random.uniform(0.5, 1.3, 3), 0, 1)


KINDS: tuple[Callable[[Random], Picture], ...] = (clouds, landscape, shapes, cells, stripes, rings)


def draw(folder: Path, count: int, seed: int) -> None:
    """Draws `count` pictures into `folder`, every kind in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        picture = kind(np.random.default_rng([seed, number]))
        image = Image.fromarray((255 * picture).round().astype(np.uint8))
        image.quantize(64, dither=Image.Dither.NONE).save(folder / f"{number:02}-{kind.__name__}.png", optimize=True)


if __name__ == "__main__":
    draw(SAMPLES / "pictures" / "images", 8, seed=1)
    draw(SAMPLES / "pictures-calibration" / "calibration", 24, seed=2)
