"""Counts, sizes and numbered names are written and read as people do."""

from __future__ import annotations

import pytest

from runner.recipe.quantities import number_order, short_count, short_size, size_of


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (134_515_008, "135M"),
        (7_000_000_000, "7B"),
        (1_540_000_000, "1.54B"),
        (999_885_952, "1B"),
        (22_713_216, "22.7M"),
        (900, "900"),
    ],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert short_count(number) == text


@pytest.mark.parametrize(
    ("size", "text"), [(300_000, "0.3 MB"), (269_100_000, "269 MB"), (999_600_000, "1.0 GB"), (31.26e9, "31.3 GB")]
)
def test_sizes_are_short(size: float, text: str) -> None:
    assert short_size(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("8gb", 8e9), ("8 G", 8e9), ("8GiB", 8 * 2**30), ("7.5GiB", 7.5 * 2**30), ("8000MB", 8e9), (".5T", 5e11)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "", "0GB", "-1GB", "8 gigabytes", "8GBs", "8,5GB", "nan GB", "1e9B"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="a size reads 8GB"):
        size_of(text)


def test_numbers_in_names_count() -> None:
    names = ["qwen2.5-14b", "qwen2.5-3b", "qwen2.5-0.5b", "qwen3-4b", "qwen2-7b", "qwen"]
    assert sorted(names, key=number_order) == ["qwen", "qwen2-7b", "qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-14b", "qwen3-4b"]
