"""Counts, sizes and numbered names, as people write and read them."""

from __future__ import annotations

import re

_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGT])(i?)B?\s*", re.IGNORECASE)


def short_count(number: int) -> str:
    """Returns 134515008 as '135M'."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def short_size(size: float) -> str:
    """Returns a number of bytes as people read it, in powers of ten: '0.3 MB', '270 MB', '3.2 GB'."""
    if size >= 999.5e6:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 9.5e6 else f"{size / 1e6:.1f} MB"


def size_of(text: str) -> float:
    """Returns the bytes that a size such as `8GB`, `7.5GiB` or `8000 MB` says.

    Raises:
        ValueError: it has no number or no unit, or is nothing at all.
    """
    found = _SIZE.fullmatch(text)
    if not found or float(found[1]) == 0:
        raise ValueError(f"a size reads 8GB, 7.5GiB or 800MB, not '{text}'")
    return float(found[1]) * (_BINARY if found[3] else _DECIMAL)[found[2].upper()]


def number_order(name: str) -> list[tuple[float, str]]:
    """Returns a key that sorts `qwen2.5-3b` before `qwen2.5-14b`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)|([^\d]+)", name)
    return [(float(number), "") if number else (float("inf"), text) for number, text in parts]
