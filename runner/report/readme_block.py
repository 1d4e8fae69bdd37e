"""The Results section of a recipe's README, from the files in its results folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.bench.results import Results, Row, read_results
from runner.bench.scenarios import FIGURES
from runner.report.figures import bar, figure, significant
from runner.report.table import environment_line

RESULTS = "results"
# What a README tells of a variant; the results file holds the rest.
_SHOWN = ("decode", "ttft", "latency", "throughput", "perplexity", "cosine", "agreement", "size", "peak_rss")


def readme_block(folder: Path) -> str | None:
    """Returns Markdown: a table a machine, a row a variant; None where nothing was measured.

    Args:
        folder: the recipe's folder.

    Raises:
        InvalidRecipe: a file in its results folder is no results file.
    """
    files = sorted((folder / RESULTS).glob("*.json"))
    if not files:
        return None
    by_host: dict[str, list[Results]] = {}
    for file in files:
        results = read_results(file)
        by_host.setdefault(results.host, []).append(results)
    return "\n\n".join(_machine(measured) for measured in by_host.values())


def _machine(measured: Sequence[Results]) -> str:
    names = [name for name in _SHOWN if any(results.row(name) for results in measured)]
    heads = ["variant", *(FIGURES[name].title for name in names)]
    lines = [
        f"| {' | '.join(heads)} |",
        f"|---|{'---|' * len(names)}",
        f"| PyTorch fp32 | {' | '.join(_baseline(measured, name) for name in names)} |",
    ]
    for results in measured:
        cells = [_cell(results, results.row(name)) for name in names]
        lines.append(f"| `{results.variant or 'default'}` | {' | '.join(cells)} |")
    first = measured[0]
    about = "; ".join(
        f"{FIGURES[name].title}: {row.about}" for name in names if (row := _first_row(measured, name)) and name != "size"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Measured {max(results.date for results in measured)[:10]} on {environment_line(first)}; "
            f"{first.threads} threads on both sides, each in a process of its own, in turns of one sitting. "
            f"{about[:1].upper()}{about[1:]}.",
        ]
    )


def _first_row(measured: Sequence[Results], name: str) -> Row | None:
    return next((row for results in measured if (row := results.row(name))), None)


def _baseline(measured: Sequence[Results], name: str) -> str:
    row = _first_row(measured, name)
    return figure(row.baseline.value, row.unit) if row and row.baseline else ""


def _cell(results: Results, row: Row | None) -> str:
    if row is None:
        return ""
    text = figure(row.optimised.value, row.unit)
    if row.ratio:
        text += f" ({significant(row.ratio.value)}x)"
    verdict = results.gate(row.name)
    if verdict is not None and not verdict.met:
        text += f" **misses {bar(verdict)}**"
    return text
