"""Files of sentence pairs with grades."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.data.graded_pairs import Pair, graded_pairs
from runner.errors import DataUnavailable

WANTED = [Pair('A "big" dog', "A large dog", 4.5), Pair("Rain", "Sun, today", 1.0), Pair("One", "Two", 0.0)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", '"A ""big"" dog",A large dog,4.5\nRain,"Sun, today",1\nOne,Two,0\n'),
        (
            "a.tsv",
            'genre\tscore\tsentence1\tsentence2\nx\t4.5\tA "big" dog\tA large dog\n\nx\t1\tRain\tSun, today\nx\t0\tOne\tTwo\n',
        ),
    ],
)
def test_with_and_without_a_header(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert graded_pairs(path) == WANTED


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "are empty"),
        ("a,b\n", "has 2 columns that nothing names"),
        ("a,b,near\n", "the score 'near' is no number"),
        ("a,b,nan\n", "the score 'nan' is no number"),
        ("a,b,1\nc,d\n", ":2 has 2 columns, and 3 are needed"),
        ("a,b,1\nc,d,2\n", "only 2 pairs"),
        ("a,b,1\nc,d,1\ne,f,1\n", "one and the same score"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, content: str, cause: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(DataUnavailable, match=cause):
        graded_pairs(path)
    with pytest.raises(DataUnavailable, match="cannot be read"):
        graded_pairs(tmp_path / "none.csv")
