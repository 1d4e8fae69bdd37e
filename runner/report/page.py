"""One self-contained HTML page of a run and its benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from runner.bench.results import Cell, Results, Row
from runner.bench.scenarios import FIGURES
from runner.report.figures import bar, figure, gain, is_better, significant, spread
from runner.report.table import environment_line, grid_figures

TEMPLATE = "report.html.j2"  # beside this module, so that an installed runner has it
_CARDS = ("decode", "ttft", "latency", "throughput", "perplexity", "cosine", "agreement", "size")
_MOST_CARDS = 4
_OPTIONS_LENGTH = 160


def write_page(path: Path, results: Results | None, receipt: Mapping[str, Any]) -> None:
    """Writes the page; it needs no other file and no network.

    Args:
        path: where.
        results: the benchmark; None where there was none.
        receipt: the run's receipt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, receipt), encoding="utf-8")


def page(results: Results | None, receipt: Mapping[str, Any]) -> str:
    """Returns the page as HTML."""
    recipe, variant = receipt.get("recipe"), receipt.get("variant")
    title = "/".join(str(part) for part in (recipe or receipt["model"]["id"], variant) if part)
    rows = [_row(results, row) for row in results.rows] if results else []
    smoke = ", smoke run: a tiny random-weight twin" if receipt["smoke"] else ""
    return _template().render(
        title=title,
        subtitle=f"{receipt['model']['id']} on {receipt['target']}{smoke}",
        cards=_cards(results) if results else [],
        notes=[*(results.notes if results else ()), *receipt.get("notes", ())],
        rows=rows,
        grid=[
            (cell.batch, " ".join(filter(None, (str(cell.length or ""), cell.figure))), *grid_figures(cell))
            for cell in results.grid
        ]
        if results
        else [],
        gated=bool(results and results.gates),
        threads=results.threads if results else None,
        steps=[_step(step) for step in receipt["steps"]],
        metrics=[_metric(metric) for metric in receipt.get("metrics", ())],
        facts=_facts(results, receipt),
    )


def _size(cell: Cell) -> str:
    return " ".join(filter(None, (str(cell.length or ""), cell.figure)))


def _template() -> jinja2.Template:
    environment = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _tone(row: Row) -> str:
    better = is_better(row)
    return "" if better is None else "good" if better else "bad"


def _cards(results: Results) -> list[dict[str, str]]:
    shown = [row for name in _CARDS if (row := results.row(name))][:_MOST_CARDS]
    return [
        {
            "title": FIGURES[row.name].title,
            "text": gain(row) or figure(row.optimised.value, row.unit),
            "detail": f"{figure(row.optimised.value, row.unit)}, was {figure(row.baseline.value, row.unit)}"
            if row.baseline
            else row.about,
            "tone": _tone(row),
        }
        for row in shown
    ]


def _row(results: Results, row: Row) -> dict[str, str]:
    verdict = results.gate(row.name)
    return {
        "title": FIGURES[row.name].title if row.name in FIGURES else row.name,
        "baseline": figure(row.baseline.value, row.unit) if row.baseline else "",
        "optimised": figure(row.optimised.value, row.unit),
        "ratio": spread(row.ratio),
        "gain": gain(row),
        "tone": _tone(row),
        "gate": f"{'✓' if verdict.met else '✗'} {bar(verdict)}" if verdict else "",
        "gate_tone": "" if verdict is None else "good" if verdict.met else "bad",
        "about": row.about,
    }


def _step(step: Mapping[str, Any]) -> dict[str, str]:
    outputs = ((step.get("parity") or {}).get("outputs") or {}).values()
    cosines = [one["cosine"] for one in outputs if one.get("cosine") is not None]
    options = ", ".join(f"{name}={_written(value)}" for name, value in step["options"].items() if _says(value))
    return {
        "name": step["step"],
        "pass_name": step["pass"],
        "seconds": significant(step["seconds"]) if "seconds" in step else "",
        "size": figure(step["bytes"], "bytes") if "bytes" in step else "",
        "cosine": f"{min(cosines):.5f}" if cosines else "",
        "options": options if len(options) <= _OPTIONS_LENGTH else f"{options[:_OPTIONS_LENGTH]}…",
    }


def _says(value: Any) -> bool:
    """Returns whether an option was given a value at all; a mapping of nothing but None was not."""
    return any(_says(item) for item in value.values()) if isinstance(value, dict) else value not in (None, [])


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items() if _says(item)) + "}"
    return str(value)


def _metric(metric: Mapping[str, Any]) -> dict[str, str]:
    return {"name": metric["name"], "value": figure(metric["value"], metric["unit"]), "note": metric.get("note") or ""}


def _facts(results: Results | None, receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = receipt["environment"]["packages"]
    size = sum(known["size"] for known in receipt["files"].values())
    facts = [
        ("source", f"{receipt['model']['id']}, {receipt['model']['from']}"),
        ("source digest", str(receipt["model"]["digest"])),
        ("fingerprint", str(receipt["fingerprint"])),
        ("result", f"{receipt['kind']}, {len(receipt['files'])} files, {figure(size, 'bytes')}"),
        ("made", receipt["made"]),
        ("made with", ", ".join(f"{name} {version}" for name, version in packages.items() if version != "absent")),
    ]
    if results:
        facts += [
            ("measured", results.date),
            ("machine", environment_line(results)),
            ("command", results.command),
            ("revision", results.environment.revision or "a tree with changes, or none"),
        ]
    return [(name, value) for name, value in facts if value]
