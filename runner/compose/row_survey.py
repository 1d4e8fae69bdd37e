"""What local files of rows hold, gone through before a training starts: all that would stop it is told at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.data.row_files import ROW_FILES, rows_of
from runner.data.text_generation import conversation
from runner.errors import DataUnavailable, InvalidRecipe, Problem, UsageError, did_you_mean

_PROSE = (".txt", ".md")  # a line is a row, whose one column is `text`
_OF_FILES = ("train", "all")  # splits of files that are named one by one
_SLICE = re.compile(r"\[[^\]]*\](?:\([^)]*\))?")  # in the notation of `datasets`: train[:10%](closest)
_MOST_TOLD = 5


@dataclass(frozen=True)
class Read:
    """What a training reads of its rows.

    Attributes:
        columns: those that it reads, each with the flag that names it.
        splits: those that it names.
        messages: column of conversations; None where rows are texts.
        held_out: rows drawn to be held out, below 1 the share of them; 0 for none.
    """

    columns: Mapping[str, str]
    splits: Sequence[str | None]
    messages: str | None
    held_out: float


@dataclass(frozen=True)
class Rows:
    """What was found in the files.

    Attributes:
        count: rows.
        incomplete: rows that lack a value, which are not trained on.
    """

    count: int = 0
    incomplete: int = 0


def survey(files: Sequence[str], read: Read) -> Rows | None:
    """Goes through local files row by row; None where they lie elsewhere, or are found by a pattern.

    Args:
        files: as they were named.
        read: what the training reads.

    Raises:
        UsageError: a file cannot be read.
        InvalidRecipe: all else that would stop the training.
    """
    local = [Path(one) for one in files if "://" not in one and "*" not in one]
    if not local:
        return None
    problems = _formats(local)
    found = Rows()
    for file in local:
        rows, wrong = _of_file(file, read)
        found = Rows(found.count + rows.count, found.incomplete + rows.incomplete)
        problems += wrong
    problems += _splits(read.splits)
    if not problems:
        problems += _too_few(found, read)
    if problems:
        raise InvalidRecipe(*problems)
    return found if len(local) == len(files) else None


def _formats(files: Sequence[Path]) -> list[Problem]:
    kinds = dict.fromkeys(file.suffix.lower().replace("jsonl", "json") for file in files)
    if len(kinds) < 2:
        return []
    other = next(file for file in files if file.suffix.lower().replace("jsonl", "json") != next(iter(kinds)))
    cause = f"files of one data set have one format, and {other} is none of {next(iter(kinds))}"
    return [Problem("mixed-formats", cause, remedy="write them in one format")]


def _splits(asked: Sequence[str | None]) -> list[Problem]:
    problems = []
    for split in filter(None, asked):
        for name in re.sub(_SLICE, "", split).split("+"):
            if name not in _OF_FILES:
                cause = f"files that are named have one split, 'train', and '{name}' was asked for"
                remedy = "--eval_dataset_size and --eval_fraction hold rows out; a folder has a split for each of its files"
                problems.append(Problem("unknown-split", cause, remedy=remedy))
    return problems


def _of_file(file: Path, read: Read) -> tuple[Rows, list[Problem]]:
    if file.suffix.lower() in _PROSE:
        return _of_lines(file), _missing(file, read, ["text"])
    if file.suffix.lower() not in ROW_FILES:
        return Rows(), []
    count = incomplete = 0
    there: dict[str, None] = {}
    problems: list[Problem] = []
    for place, row in rows_of(file, read.columns):
        count += 1
        there |= dict.fromkeys(row)
        values = [row.get(name) for name in read.columns]
        incomplete += None in values
        if read.messages is not None and row.get(read.messages) is not None and len(problems) < _MOST_TOLD:
            try:
                conversation(row[read.messages], read.messages)
            except DataUnavailable as error:
                problems += [Problem("bad-data", f"{place}: {one.cause}", remedy=one.remedy) for one in error.problems]
    if not there:
        raise UsageError("bad-data", f"{file}: its rows have no columns", "a list of objects, or one a line")
    return Rows(count, incomplete), [*_missing(file, read, list(there)), *problems]


def _of_lines(file: Path) -> Rows:
    try:
        with file.open(encoding="utf-8") as lines:
            return Rows(sum(1 for _ in lines))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("bad-data", f"{file} cannot be read as text in UTF-8: {error}", "save it as UTF-8") from None


def _missing(file: Path, read: Read, there: Sequence[str]) -> list[Problem]:
    return [
        Problem("unknown-column", f"{file} has no column '{name}' ({flag})", remedy=did_you_mean(name, there))
        for name, flag in read.columns.items()
        if name not in there
    ]


def _too_few(found: Rows, read: Read) -> list[Problem]:
    held_out = int(read.held_out) if read.held_out >= 1 else math.ceil(read.held_out * found.count)
    names = " and ".join(f"'{name}'" for name in read.columns)
    if found.incomplete >= found.count:
        return [Problem("no-data", f"no row has a value in {names}", remedy="name other columns, or fill them")]
    if held_out >= found.count:
        cause = f"{held_out} of {found.count} rows are held out, which leaves none to train on"
        remedy = "hold out fewer with --eval_dataset_size, none with --eval_fraction 0, or add rows"
        return [Problem("no-data", cause, remedy=remedy)]
    return []
