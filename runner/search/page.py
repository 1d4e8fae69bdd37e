"""One self-contained HTML page of a search: the chart and all points."""

from __future__ import annotations

from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from runner.search.pareto import compared_figures
from runner.search.search import Found, Search
from runner.search.summary import notes_of, rows_of

TEMPLATE, PAGE = "search.html.j2", "search.html"


def write_page(search: Search, found: Found, chart: Path | None) -> Path:
    """Writes the page into the search's folder and returns it; it needs no other file and no network.

    Args:
        search: what was searched.
        found: its trials.
        chart: the chart as SVG, which goes into the page; None where there is none.
    """
    drawn = chart.read_text(encoding="utf-8") if chart else ""
    aims = search.aims
    wanted = [*(str(one) for one in aims.objectives), *(str(one) for one in aims.goals)]
    environment = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        title=f"Search: {search.request.name}",
        subtitle=f"{search.request.config.input_model.model_path} on {search.plan.target.name}: {', '.join(wanted)}",
        notes=notes_of(search, found),
        chart=drawn[drawn.index("<svg") :] if drawn else "",
        columns=compared_figures(found.study.trials, aims),
        rows=rows_of(search, found),
    )
    page = search.folder / PAGE
    page.write_text(text, encoding="utf-8")
    return page
