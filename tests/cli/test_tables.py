"""Tables fit the terminal and break no word."""

from __future__ import annotations

import click
import pytest

from runner.cli.tables import fitted_lines


@pytest.mark.parametrize("room", [40, 80, 200])
def test_table_breaks_no_word(room: int) -> None:
    columns = ("recipe", "task", "parameters", "variants")
    rows = [
        ("all-minilm-l6-v2", "feature-extraction", "22.7M", "cpu-fp32, cpu-int8-dynamic, cpu-int8-static, cuda-fp16"),
        ("x", "fill-mask", "1M", "cpu-fp32"),
    ]
    lines = [click.unstyle(line) for line in fitted_lines(columns, rows, room, ("parameters",))]
    assert max(map(len, lines)) <= room
    assert " ".join(lines).split() == " ".join(" ".join(row) for row in (columns, *rows)).split()
