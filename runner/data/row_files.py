"""Files of rows, read without the libraries that train on them: which columns they have, and row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import UsageError

ROW_FILES = (".json", ".jsonl", ".csv", ".parquet")
_BATCH = 1024  # rows of a parquet file that are read at once
# Cells of a csv file that pandas, and with it `datasets`, reads as no value (pandas.read_csv, na_values).
_EMPTY_CELLS = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
     "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip


def columns_of(file: Path, wanted: Collection[str] = ()) -> Sequence[str]:
    """Returns the columns of a file of rows: json (a list, or an object a line), jsonl, csv or parquet.

    Args:
        file: the file.
        wanted: columns that an object may lack; rows behind the first are read only while one of these was not seen.

    Raises:
        UsageError: there is no such file, or no rows can be read from it.
    """
    found: dict[str, None] = {}
    for _, row in rows_of(file):
        found |= dict.fromkeys(row)
        if all(name in found for name in wanted):
            break
    if not found:
        raise UsageError("bad-data", f"{file}: its rows have no columns", "a list of objects, or one a line")
    return list(found)


def rows_of(file: Path, columns: Collection[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the rows of a file with the place of each, for people; what is no object has no columns.

    A cell of a csv file that is empty, or says NA and the like, is None, as in the data sets that are made of it. A csv or
    parquet file without rows yields one of empty cells.

    Args:
        file: json (a list, or an object a line), jsonl, csv or parquet.
        columns: of a parquet file read these alone.

    Raises:
        UsageError: there is no such file, or no rows can be read from it; tells the line.
    """
    if not file.is_file() or file.suffix.lower() not in ROW_FILES:
        cause = f"there is no file '{file}'" if not file.is_file() else f"{file.name} holds no rows"
        raise UsageError("no-data", cause, f"name a file that ends in {', '.join(ROW_FILES)}")
    read = {".parquet": _of_parquet, ".csv": _of_csv}.get(file.suffix.lower(), _of_json)
    try:
        for place, row in read(file, columns):
            yield f"{file}, {place}", row
    except UnicodeDecodeError as error:
        raise UsageError("bad-data", f"{file} is not text in UTF-8: {error.reason}", "save it as UTF-8") from None
    except (OSError, ValueError, LookupError, csv.Error) as error:
        remedy = "write it again: it is damaged, or of another format than its name says"
        raise UsageError("bad-data", f"{file}: no rows can be read from it: {error}", remedy) from None


_Rows = Iterator[tuple[str, Mapping[str, Any]]]


def _of_parquet(file: Path, columns: Collection[str] | None) -> _Rows:
    from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

    table = parquet.ParquetFile(file)
    names = [str(name) for name in table.schema_arrow.names]
    number = 0
    for batch in table.iter_batches(_BATCH, columns=None if columns is None else [name for name in names if name in columns]):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row if columns is None else dict.fromkeys(names) | row
    if not number:
        yield "row 0", dict.fromkeys(names)


def _of_csv(file: Path, _: Collection[str] | None) -> _Rows:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        for row in reader:
            yield (
                f"line {reader.line_num}",
                {name: None if cell in _EMPTY_CELLS else cell for name, cell in row.items() if name is not None},
            )
        if reader.line_num == 1 and reader.fieldnames:
            yield "line 1", dict.fromkeys(reader.fieldnames)


def _of_json(file: Path, _: Collection[str] | None) -> _Rows:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        number, first = next(((at, line) for at, line in enumerate(stream, 1) if line.strip()), (1, ""))
        if first.lstrip().startswith("{"):
            yield f"line {number}", _object(_parsed(first, file, number))
            for later, line in enumerate(stream, number + 1):
                if line.strip():
                    yield f"line {later}", _object(_parsed(line, file, later))
            return
        rows = _parsed(first + stream.read(), file, number)
        for at, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
            yield f"row {at}", _object(row)


def _parsed(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cause = f"{file}, line {line + error.lineno - 1}: {error.msg}"
        raise UsageError("bad-data", cause, "a list of objects, or one a line") from None


def _object(row: object) -> Mapping[str, Any]:
    return row if isinstance(row, dict) else {}
