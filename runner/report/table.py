"""A benchmark as a table: coloured on a terminal, aligned plain text in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.bench.results import Cell, Results, Row, Verdict
from runner.bench.scenarios import FIGURES
from runner.report.figures import bar, figure, gain, is_better, spread
from runner.targets.target import TARGETS

PIPE_WIDTH = 140
_PLAIN = box.Box("    \n" * 8)
ROOMY = 130  # columns from which on there is room to say how each figure was measured; results.json always does


def print_results(results: Results, console: Console | None = None) -> None:
    """Prints the benchmark: what was measured, a row a figure, the environment and the notes."""
    console = console or _console()
    name = f"{results.recipe}/{results.variant}" if results.variant else results.recipe
    console.print(f"[bold]{name}[/] against {results.baseline} on {results.target}, {_rules(results)}", highlight=False)
    console.print(_table(results, plain=not console.is_terminal, roomy=console.width >= ROOMY))
    if results.grid:
        console.print(_grid(results.grid, plain=not console.is_terminal))
    for line in (*_peers(results), *_placed(results)):
        console.print(line, highlight=False)
    console.print(f"[dim]{environment_line(results)}[/]", highlight=False)
    for note in results.notes:
        console.print(f"[yellow]note[/] {note}", highlight=False)
    for verdict in results.gates:
        if not verdict.met:
            console.print(f"[red]gate missed[/] {verdict}", highlight=False)


def _peers(results: Results) -> Iterator[str]:
    """Yields what the original in other forms reached."""
    for row in results.rows:
        for peer in row.peers:
            name = FIGURES[row.name].title if row.name in FIGURES else row.name
            yield f"{peer.form}: {name} {figure(peer.value, row.unit)}; optimised {spread(peer.ratio)} of it"


def _placed(results: Results) -> Iterator[str]:
    """Yields how much of the model the asked provider ran."""
    placed = results.placement
    if placed is None or not placed.nodes:
        return
    provider = TARGETS[results.target].provider
    nodes, share = placed.nodes.get(provider, 0), placed.share_of_time(provider)
    elsewhere = ", ".join(f"{operator} {count}" for operator, count in placed.fell_back.items())
    told = f"{provider} ran {nodes} of {sum(placed.nodes.values())} nodes, {share:.1%} of the time"
    yield f"{told}; on another: {elsewhere}" if elsewhere else told


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _rules(results: Results) -> str:
    threads = f"{results.threads} thread{'s' if results.threads != 1 else ''}"
    return f"{threads}, {results.rounds} round{'s' if results.rounds != 1 else ''} in turn"


def _grid(cells: Sequence[Cell], plain: bool) -> Table:
    """Returns the speed by batch and length."""
    table = Table(box=_PLAIN if plain else box.SIMPLE_HEAD, header_style="bold" if not plain else "", pad_edge=False)
    table.add_column("batch", justify="right", style="cyan")
    lengths = any(cell.length for cell in cells)
    generates = any(cell.figure for cell in cells)
    for column in (
        *(("tokens",) if lengths else ()),
        *(("figure",) if generates else ()),
        "baseline",
        "optimised",
        "a batch",
        "ratio",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in cells:
        size = (str(cell.length or ""),) if lengths else ()
        table.add_row(str(cell.batch), *size, *((cell.figure or "",) if generates else ()), *grid_figures(cell))
    return table


def grid_figures(cell: Cell) -> tuple[str, str, str, str]:
    """Returns the speed of the baseline and of the optimised model, the latter's time of a batch, and the ratio."""
    return (
        figure(cell.baseline.value, cell.unit),
        figure(cell.optimised.value, cell.unit),
        "" if cell.figure else figure(cell.latency(cell.optimised), "ms"),
        spread(cell.ratio),
    )


def _table(results: Results, plain: bool, roomy: bool) -> Table:
    table = Table(
        box=_PLAIN if plain else box.SIMPLE_HEAD, header_style="bold" if not plain else "", pad_edge=False, show_header=True
    )
    gated = bool(results.gates)
    table.add_column("figure", no_wrap=True, style="cyan")
    for column in ("baseline", "optimised"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("gain", no_wrap=True)
    if gated:
        table.add_column("gate", no_wrap=True)
    if roomy:
        table.add_column("measured", style="dim", overflow="fold")
    for row in results.rows:
        cells: list[Text | str] = [
            FIGURES[row.name].title if row.name in FIGURES else row.name,
            figure(row.baseline.value, row.unit) if row.baseline else "",
            figure(row.optimised.value, row.unit),
            spread(row.ratio),
            _gain(row),
        ]
        if gated:
            cells.append(_gate(results.gate(row.name)))
        table.add_row(*cells, *([row.about] if roomy else []))
    return table


def _gain(row: Row) -> Text:
    better = is_better(row)
    return Text(gain(row), style="" if better is None else "green" if better else "red")


def _gate(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text("")
    return Text(f"{'✓' if verdict.met else '✗'} {bar(verdict)}", style="green" if verdict.met else "bold red")


def environment_line(results: Results) -> str:
    """Returns the machine and the libraries in one line."""
    env = results.environment
    shown = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-genai", "onnxruntime-genai-cuda", "torch")
    packages = ", ".join(f"{name} {env.packages[name]}" for name in shown if name in env.packages)
    card = f"{env.card.name}, driver {env.card.driver}; " if env.card else ""
    flags = f" ({', '.join(env.flags)})" if env.flags else ""
    memory = f"{env.memory_bytes / 1e9:.0f} GB"
    return f"{card}{env.cpu}, {env.cores} cores{flags}, {memory}; {env.system}; Python {env.python}, {packages}"
