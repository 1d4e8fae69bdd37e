"""Tables: set within the terminal's width for people, plain columns into a pipe."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

LEAST_LAST_COLUMN = 30
_GAP = "  "
_INDENT = 4


def print_json(data: Any) -> None:
    """Prints data as indented JSON."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Prints rows under headings.

    Args:
        columns: the headings.
        rows: cells as text.
        right: headings of columns that are aligned to the right.
    """
    if sys.stdout.isatty():
        for line in fitted_lines(columns, rows, shutil.get_terminal_size().columns, right):
            click.echo(line)
        return
    for line in aligned([name.upper() for name in columns], rows, [name.upper() for name in right]):
        click.echo(line)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Iterator[str]:
    """Yields the lines of a table, the headings first, however wide they are.

    Args:
        columns: the headings.
        rows: cells as text.
        right: headings of columns that are aligned to the right.
    """
    widths = _widths(columns, rows)
    for cells in (columns, *rows):
        yield _GAP.join(_cells(columns, cells, widths, right)).rstrip()


def fitted_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, right: Sequence[str] = ()) -> Iterator[str]:
    """Yields the lines of a table for a terminal, styled; words are never broken.

    The last column is wrapped between words where enough room is left for it. Otherwise it stands below the others, indented;
    where these do not fit into a line either, all but the first do.

    Args:
        columns: the headings.
        rows: cells as text.
        room: width of the terminal in characters.
        right: headings of columns that are aligned to the right.
    """
    widths = _widths(columns, rows)
    indent = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    beside = indent + min(widths[-1], LEAST_LAST_COLUMN) <= room
    split = len(widths) - 1 if indent <= room else 1
    for number, line in enumerate([tuple(columns), *map(tuple, rows)]):
        cells = _cells(columns, line, widths, right)
        head = _GAP.join(cells[:split])
        below = _wrapped(_GAP.join((*cells[split:-1], line[-1])), room - (indent if beside else _INDENT))
        if beside:
            lines = [head + _GAP * (split > 0) + below[0], *(" " * indent + more for more in below[1:])]
        else:
            lines = [head, *(" " * _INDENT + more for more in below if more)]
        for at, text in enumerate(lines):
            yield _styled(text.rstrip(), line[0] if at == 0 else "", heading=number == 0)


def _styled(text: str, first: str, *, heading: bool) -> str:
    if heading:
        return click.style(text, bold=True)
    return click.style(first, fg="cyan") + text[len(first) :] if first and text.startswith(first) else text


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[at]) for line in (columns, *rows)) for at in range(len(columns))]


def _cells(columns: Sequence[str], line: Sequence[str], widths: Sequence[int], right: Sequence[str]) -> list[str]:
    return [
        cell.rjust(width) if name in right else cell.ljust(width)
        for name, cell, width in zip(columns, line, widths, strict=True)
    ]


def _wrapped(text: str, room: int) -> list[str]:
    """The text in lines of at most `room`, broken at spaces only; a longer word keeps a line of its own."""
    if len(text.rstrip()) <= room:
        return [text]
    return textwrap.wrap(text, max(room, 1), break_long_words=False, break_on_hyphens=False) or [""]
