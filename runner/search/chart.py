"""Draws the points of a search: quality against speed, the size as the area of the dot, the Pareto front as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.bench.scenarios import FIGURES
from runner.search.aims import QUALITIES, SPEEDS
from runner.search.search import Found, Search
from runner.search.study import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHARTS = ("search.svg", "search.png")
_AREA = (40.0, 420.0)  # of the smallest and the largest model's dot, in square points
_GOOD, _MISSED, _LINE = "#2457c5", "#9aa4b2", "#14794a"


def axes_of_chart(search: Search, trials: Sequence[Trial]) -> tuple[str, str]:
    """Returns the figures across and up: the speed (the size where nothing was timed) and the quality."""
    there = [name for name in trials[0].figures if all(name in trial.figures for trial in trials)]
    wanted = [name for name in search.aims.metrics if name in there]

    def chosen(known: Sequence[str], other: str | None) -> str | None:
        named = next((name for name in wanted if name in known and name != other), None)
        return named or next((name for name in known if name in there and name != other), None)

    across = chosen((*SPEEDS, "decode_latency"), None) or next((name for name in wanted if "latency" in name), "size")
    up = chosen(QUALITIES, across) or next((name for name in (*wanted, *there) if name != across), "size")
    return across, up


def draw(search: Search, found: Found, folder: Path) -> list[Path]:
    """Writes the chart as SVG and PNG into a folder and returns the files; none where no point was measured.

    Args:
        search: what was searched.
        found: its trials.
        folder: where to.
    """
    trials = found.ranked
    if not trials:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    across, up = axes_of_chart(search, trials)
    _dots(axes, search, found, across, up)
    _front(axes, [trial for trial in trials if trial.number in found.front], across, up)
    axes.set_xlabel(_label(trials[0], across))
    axes.set_ylabel(_label(trials[0], up))
    axes.set_title(f"{search.request.name}: {len(trials)} points", loc="left", fontsize=11)
    axes.grid(color="#dfe3ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.1)
    axes.legend(loc="best", fontsize=8, markerscale=0.6, framealpha=0.9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    files = [folder / name for name in CHARTS]
    for file in files:
        canvas.savefig(file, dpi=150)
    return files


def _dots(axes: Axes, search: Search, found: Found, across: str, up: str) -> None:
    sizes = [trial.figures["size"].value for trial in found.ranked]
    least, most = min(sizes), max(sizes)
    for reached, colour, text in ((True, _GOOD, "meets the goals"), (False, _MISSED, "misses a goal")):
        chosen = [trial for trial in found.ranked if (not search.aims.missed(trial.figures)) == reached]
        if not chosen:
            continue
        areas = [
            _AREA[0] + (_AREA[1] - _AREA[0]) * (trial.figures["size"].value - least) / ((most - least) or 1.0)
            for trial in chosen
        ]
        xs, ys = _values(chosen, across), _values(chosen, up)
        axes.scatter(xs, ys, s=areas, c=colour, alpha=0.6, edgecolors="white", linewidths=0.8, label=text)
    best = found.ranked[0]
    place: Any = (best.figures[across].value, best.figures[up].value)
    axes.annotate(
        f"point {best.number + 1}, {best.figures['size'].value / 1e6:.1f} MB", place, xytext=(10, 10), fontsize=8,
        textcoords="offset points", arrowprops={"arrowstyle": "-", "color": "#5c6675", "linewidth": 0.7},
    )  # fmt: skip


def _front(axes: Axes, trials: Sequence[Trial], across: str, up: str) -> None:
    ordered = sorted(trials, key=lambda trial: (trial.figures[across].value, trial.figures[up].value))
    axes.plot(_values(ordered, across), _values(ordered, up), color=_LINE, linewidth=1.2, zorder=1, label="Pareto front")


def _values(trials: Sequence[Trial], name: str) -> list[float]:
    scale = 1e6 if trials and trials[0].figures[name].unit == "bytes" else 1.0
    return [trial.figures[name].value / scale for trial in trials]


def _label(trial: Trial, name: str) -> str:
    one = trial.figures[name]
    title = FIGURES[name].title if name in FIGURES else name.replace("_", " ")
    unit = "MB" if one.unit == "bytes" else one.unit
    return f"{title}{f', {unit}' if unit else ''} ({'more' if one.higher_is_better else 'less'} is better)"
