"""Pairs of sentences with how near to one another people find them, as the sets for semantic textual similarity hold them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import DataUnavailable

_NAMES = (
    ("sentence1", "first", "text1"),
    ("sentence2", "second", "text2"),
    ("score", "label", "similarity", "similarity_score"),
)
_FORM = "columns sentence1, sentence2 and score, separated by commas (.csv) or tabs (.tsv)"
_LEAST = 3  # of fewer pairs a correlation says nothing


@dataclass(frozen=True)
class Pair:
    """Two sentences and a grade; greater is nearer, on any scale."""

    first: str
    second: str
    score: float


def graded_pairs(path: Path) -> list[Pair]:
    """Returns the pairs of a .csv or .tsv file, with a header as STS-B's, or of three columns without one.

    Raises:
        DataUnavailable: it is not there, has no such columns, a grade is no number, all are the same, or there are few.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataUnavailable(f"the pairs '{path}' cannot be read: {cause}", _FORM) from None
    tabs = path.suffix.lower() == ".tsv"
    lines = text.splitlines()
    # In STS-B's tsv files a quotation mark is nothing but one.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise DataUnavailable(f"the pairs '{path}' are empty", _FORM)
    columns = _columns(rows[0][1])
    if columns is not None:
        del rows[0]
    elif len(rows[0][1]) != len(_NAMES):
        raise DataUnavailable(f"{path}:{rows[0][0]} has {len(rows[0][1])} columns that nothing names", _FORM)
    pairs = [_pair(row, columns or range(len(_NAMES)), f"{path}:{number}") for number, row in rows]
    if len(pairs) < _LEAST or len({pair.score for pair in pairs}) == 1:
        cause = f"only {len(pairs)} pairs" if len(pairs) < _LEAST else "pairs of one and the same score"
        raise DataUnavailable(f"{path} holds {cause}: there is nothing to rank", "add pairs that are nearer and less near")
    return pairs


def _columns(header: Sequence[str]) -> list[int] | None:
    """Returns where the sentences and the score stand; None where the line is no header."""
    names = [cell.strip().lower() for cell in header]
    found = [next((names.index(name) for name in known if name in names), -1) for known in _NAMES]
    return None if -1 in found else found


def _pair(row: Sequence[str], columns: Sequence[int], where: str) -> Pair:
    if len(row) <= max(columns):
        raise DataUnavailable(f"{where} has {len(row)} columns, and {max(columns) + 1} are needed", _FORM)
    first, second, grade = (row[at].strip() for at in columns)
    try:
        score = float(grade)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataUnavailable(f"{where}: the score '{grade}' is no number", _FORM)
    return Pair(first, second, score)
