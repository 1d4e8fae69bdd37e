"""What `recipe init` asks about training: data of one's own, and how a row of it reads as text."""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Sequence
from pathlib import Path

from runner.errors import UsageError, did_you_mean

_ASKED = ("instruction", "question", "prompt", "input", "query")
_ANSWERED = ("response", "answer", "output", "completion", "target")
_MESSAGES = ("messages", "conversations")
_ROWS = (".json", ".jsonl", ".csv", ".parquet")


def columns_of(file: Path) -> Sequence[str]:
    """Returns the columns of a file of rows: json (a list, or an object a line), jsonl, csv or parquet.

    Raises:
        UsageError: there is no such file, or no rows can be read from it.
    """
    if not file.is_file() or file.suffix.lower() not in _ROWS:
        cause = f"there is no file '{file}'" if not file.is_file() else f"{file.name} holds no rows"
        raise UsageError("no-data", cause, f"name a file that ends in {', '.join(_ROWS)}")
    try:
        columns = _read(file)
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(
            "bad-data", f"{file}: no rows can be read from it: {error}", "a list of objects, or one a line"
        ) from None
    if not columns:
        raise UsageError("bad-data", f"{file}: its rows have no columns", "a list of objects, or one a line")
    return columns


def _read(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

        return [str(name) for name in parquet.read_schema(file).names]
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix.lower() == ".csv":
            return next(csv.reader(stream), [])
        first = stream.readline()
        row = json.loads(first if first.strip().startswith("{") else first + stream.read())
    row = row[0] if isinstance(row, list) else row
    return list(row) if isinstance(row, dict) else []


def chats(columns: Sequence[str]) -> bool:
    """Returns whether rows are conversations, which the model's chat template turns into text."""
    return any(name in _MESSAGES for name in columns)


def proposed_template(columns: Sequence[str]) -> str:
    r"""Returns how a row could read as text: a question and its answer where columns are called so; \n is a line break."""
    asked = next((name for name in _ASKED if name in columns), None)
    answered = next((name for name in _ANSWERED if name in columns), None)
    if asked and answered:
        return f"### Question: {{{asked}}}\\n### Answer: {{{answered}}}"
    return "{text}" if "text" in columns else r"\n".join(f"{{{name}}}" for name in columns)


def check_template(text: str, columns: Sequence[str]) -> None:
    """Makes sure that a template names columns that are there.

    Raises:
        UsageError: it names none, or one that is not there.
    """
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UsageError("bad-template", f"'{text}': {error}", "write a column as {name}, and a brace as {{") from None
    if not named:
        raise UsageError("bad-template", f"'{text}' names no column", f"write one as {{{columns[0]}}}")
    for name in named:
        if name not in columns:
            raise UsageError("unknown-column", f"the data has no column '{name}'", did_you_mean(name, columns))
