"""Files of rows: which columns they have, read without the libraries that train on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from runner.errors import UsageError

ROW_FILES = (".json", ".jsonl", ".csv", ".parquet")


def columns_of(file: Path, wanted: Collection[str] = ()) -> Sequence[str]:
    """Returns the columns of a file of rows: json (a list, or an object a line), jsonl, csv or parquet.

    Args:
        file: the file.
        wanted: columns that an object may lack; rows behind the first are read only while one of these was not seen.

    Raises:
        UsageError: there is no such file, or no rows can be read from it.
    """
    if not file.is_file() or file.suffix.lower() not in ROW_FILES:
        cause = f"there is no file '{file}'" if not file.is_file() else f"{file.name} holds no rows"
        raise UsageError("no-data", cause, f"name a file that ends in {', '.join(ROW_FILES)}")
    found: dict[str, None] = {}
    try:
        for names in _names_of_rows(file):
            found |= dict.fromkeys(names)
            if all(name in found for name in wanted):
                break
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(
            "bad-data", f"{file}: no rows can be read from it: {error}", "a list of objects, or one a line"
        ) from None
    if not found:
        raise UsageError("bad-data", f"{file}: its rows have no columns", "a list of objects, or one a line")
    return list(found)


def _names_of_rows(file: Path) -> Iterator[Iterable[str]]:
    """Yields the names that a row has, row by row; those of all rows at once where the file says them at its beginning."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

        yield map(str, parquet.read_schema(file).names)
        return
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if suffix == ".csv":
            yield next(csv.reader(stream), [])
            return
        first = next((line for line in stream if line.strip()), "")
        if first.lstrip().startswith("{"):
            yield _names(json.loads(first))
            yield from (_names(json.loads(line)) for line in stream if line.strip())
            return
        rows = json.loads(first + stream.read())
        yield from map(_names, rows if isinstance(rows, list) else [rows])


def _names(row: object) -> Iterable[str]:
    return row if isinstance(row, dict) else ()
