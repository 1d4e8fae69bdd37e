"""The tables of a recipe's README.md: what was measured, from the files in results/.

The files are read as plain JSON: what writes them (`runner.bench.results`) lies above this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Place, Problem

_TITLES = {
    "ttft": "first token",
    "size": "size on disk",
    "load": "load time",
    "peak_rss": "peak memory",
    "cosine_min": "cosine, worst input",
}

_PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-genai", "onnxruntime-genai-cuda",
    "onnxruntime-genai-directml", "torch",
)  # fmt: skip
_PLAIN = "PyTorch fp32"
_KEPT = ("cosine", "agreement", "wer", "psnr")  # of value in themselves, whatever the baseline's are


def read_results_files(folder: Path) -> list[dict[str, Any]]:
    """Returns the results files of a recipe folder, smoke runs left out, in the order of their names.

    Raises:
        InvalidRecipe: a file is not JSON.
    """
    found = []
    for path in sorted((folder / "results").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InvalidRecipe(Problem("bad-results", error.msg, Place(str(path), error.lineno))) from None
        if not content.get("smoke"):
            found.append(content)
    return found


def results_table(folder: Path, variants: Sequence[str]) -> str | None:
    """Returns a Markdown table for every machine that measured; None where nothing was measured.

    Args:
        folder: the recipe's folder.
        variants: names of its variants, in the order of the columns.

    Raises:
        InvalidRecipe: a results file is not readable.
    """
    files = [content for content in read_results_files(folder) if content["variant"] in variants]
    hosts = dict.fromkeys(content["host"] for content in files)
    order = {name: number for number, name in enumerate(variants)}
    tables = [
        _host_table(sorted((one for one in files if one["host"] == host), key=lambda one: order[one["variant"]]))
        for host in hosts
    ]
    return "\n\n".join(tables) or None


def _host_table(files: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(row["name"] for content in files for row in content["rows"])
    rows = [["", *(f"`{content['variant']}`" for content in files)]]
    if any("baseline" in content and content["baseline"] != _PLAIN for content in files):
        rows += [["original", *(content.get("baseline", _PLAIN) for content in files)]]
    rows += [[_title(name), *(_cell(content, name) for content in files)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * len(files))
    return f"{_machine(files[0])}\n\n" + "\n".join(lines)


def _machine(content: dict[str, Any]) -> str:
    environment, dates = content["environment"], content["date"][:10]
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    flags = ", ".join(environment["flags"])
    told = f"{environment['cpu']}, {content['threads']} threads ({flags})"
    if card := environment.get("card"):
        told = f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}; {environment['cpu']}"
    random = " Weights are random ones of the model's shapes: speed and memory count, quality is not judged." * _random(content)
    return (
        f"{told}; {versions}; {dates}.{random} "
        "In brackets: as a multiple of the original model in PyTorch, measured in turn in the same sitting."
    )


def _random(content: dict[str, Any]) -> bool:
    return content.get("weights") == "random"


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _cell(content: dict[str, Any], name: str) -> str:
    row = next((row for row in content["rows"] if row["name"] == name), None)
    if row is None:
        return ""
    ratio = f" ({row['ratio']['value']:.2f}x)" if row.get("ratio") else ""
    return f"{figure(row['optimised']['value'], row['unit'])}{ratio}"


def figure(value: float, unit: str) -> str:
    """Returns a figure as people read it: `105 MB`, `175 tokens/s`, `0.993`."""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.4g}" if unit == "" else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def best_figures(folder: Path) -> Iterable[tuple[str, dict[str, str]]]:
    """Yields (variant, {figure: text}) of each results file, for overviews: only what has a ratio, and kept quality.

    Results of random weights are left out: they say nothing of quality.
    """
    for content in read_results_files(folder):
        if _random(content):
            continue
        told = {row["name"]: f"{row['ratio']['value']:.2f}x" for row in content["rows"] if row.get("ratio")}
        kept = {row["name"]: figure(row["optimised"]["value"], row["unit"]) for row in content["rows"] if row["name"] in _KEPT}
        yield content["variant"], {**told, **kept}
