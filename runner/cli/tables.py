"""Tables and JSON on stdout: ruled and coloured on a terminal, aligned plain text in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click


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
        _print_ruled(columns, rows, right)
        return
    widths = [max(len(line[at]) for line in (columns, *rows)) for at in range(len(columns))]
    for line in ([name.upper() for name in columns], *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _print_ruled(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if name in right else "left",
            style="cyan" if at == 0 else "",
            no_wrap=at == 0,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    Console().print(table)
