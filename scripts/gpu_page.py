"""Writes docs/gpu.md from scripts/gpu_page.md, docs/gpu.json and the results that a GPU left in the recipes' folders.

    python scripts/gpu_page.py [--records FOLDER/done] [--check]

--records takes the records of gpu_suite.py's scripts over into docs/gpu.json first; records of a CPU or of tiny twins are
refused, and nothing is written then. With --check nothing is written at all: the page is compared with what it would be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from runner.catalog.find import find_entry
from runner.passes.record import CURRENT, told_of
from runner.recipe.document import read_document
from runner.templating.results import OLDER_MARK, of_peer, placed, ratio_of

ROOT = Path(__file__).resolve().parents[1]
FIGURES, PAGE = ROOT / "docs" / "gpu.json", ROOT / "docs" / "gpu.md"
TEXT = ROOT / "scripts" / "gpu_page.md"
SHOWN = (
    "decode", "ttft", "rtf", "image_time", "step_time", "latency", "throughput", "perplexity", "wer", "psnr", "cosine",
    "agreement", "size", "device_memory",
)  # fmt: skip

OLD_TOKENS = 16  # written by a cell that does not say how many
KERNELS_OF = {"vit-base-kernels": "images/s", "bert-base-kernels": "texts/s"}  # what a second has of


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or says whether it is up to date; returns 1 where it is not, or where records are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="folder of the suite's records")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is not up to date")
    asked = parser.parse_args(arguments)
    kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    found, problems = read_records(asked.records) if asked.records else ({}, [])
    if not problems and "machine" not in kept | found:
        problems = ["no record says what the memory reaches: run gpu_suite.py --only machine"]
    if problems:
        print("nothing is written:", *problems, sep="\n    ", file=sys.stderr)
        return 1
    records = taken_over(kept, found)
    page = render(records)
    if asked.check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        return int(current != page or records != kept)
    if records != kept:
        FIGURES.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")
    return 0


def read_records(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the records of a sitting by name, and what is wrong: nothing there, no JSON, or measured without a GPU."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return {}, [f"{folder}: " + ("there are no records in it" if folder.is_dir() else "there is no such folder")]
    found, problems = {}, []
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            problems.append(f"{path}: no JSON: {error}")
            continue
        if not isinstance(record, dict) or not isinstance(record.get("figures"), dict) or not record["figures"]:
            problems.append(f"{path}: no record of gpu_suite.py with figures")
        elif record.get("smoke"):
            problems.append(f"{path}: measured at small sizes (--smoke or --target cpu)")
        elif not record.get("card"):
            problems.append(f"{path}: it names no card that was measured")
        found[path.stem] = record
    return found, problems


def taken_over(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the page's records with those of a sitting: what was measured anew replaces, everything else stays.

    Of decoding each model is a measurement of its own, beside which stands what the memory reached in its sitting; of kernels
    what was tried stays between original and optimised. Records of `recipe bench` are left out: their results lie in the
    recipes' folders.
    """
    told = kept | {name: record for name, record in found.items() if "rows" not in record["figures"]}
    for name, record in found.items():
        if name.startswith("decode-"):
            read = told["machine"]["figures"]["read"]
            before = kept.get(name, {}).get("figures", {})
            models = {model: {**figures, "read": read} for model, figures in record["figures"].items()}
            told[name] = {**record, "figures": {**before, **models}}
        elif sides := record["figures"].get("sides"):
            tried = [side for side in kept.get(name, {}).get("figures", {}).get("sides", ()) if side.get("tried")]
            told[name] = {**record, "figures": {**record["figures"], "sides": [sides[0], *tried, *sides[1:]]}}
    return told


def render(records: dict[str, Any]) -> str:
    """Returns the page of these records: what people wrote in scripts/gpu_page.md, with the tables in place of its markers."""
    results = [
        found
        for path in sorted(ROOT.glob("recipes/*/*/results/*.json"))
        if (found := json.loads(path.read_text(encoding="utf-8")))["environment"].get("card")
    ]
    page = TEXT.read_text(encoding="utf-8")
    tables = {
        "limits": _limits(records["machine"]["figures"]),
        "results": _table(("recipe", "weights", "figure", "original", "optimised", "ratio", "compiled"), _rows(results)),
        "passes": _table(("recipe", "date", "revision", "measured with"), _states(results)),
        "sizes": _table(
            ("recipe", "what", "rows x length", "tokens written", "original", "optimised", "ratio"), _cells(results)
        ),
        "decode": _table(("model", "tried", "a token", "of the limit"), _decode(records)),
        **{
            name: _table(("what", "a call of 32", "kernels alone", what), _kernels(record))
            for name, record in records.items()
            if (what := KERNELS_OF.get(name))
        },
        "components": _table(
            ("component", "original", "kernels alone", "optimised", "kernels alone", "ratio", "cosine of both"),
            _components(records),
        ),
        "placed": _table(("recipe", "nodes on CUDA", "of the host's time", "on the CPU"), _placed(results)),
        "commands": _table(("recipe", "command"), ((_plain_name(one), f"`{one['command']}`") for one in results)),
    }
    for name, table in tables.items():
        page = page.replace(f"<!-- {name} -->", table)
    return page


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    found = list(rows)
    if not found:
        return "Not measured yet."
    lines = ["| " + " | ".join(row) + " |" for row in (head, *found)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def _limits(found: dict[str, Any]) -> str:
    card = found["card"]
    return (
        f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}, PyTorch {found['torch']}: memory is read at "
        f"{found['read'] / 1e12:.2f} TB/s, copied at {found['copy'] / 1e12:.2f} TB/s (read and written), and a bf16 product of "
        f"8192 x 8192 matrices runs at {found['bf16_product'] / 1e12:.0f} TFLOP/s."
    )


def _plain_name(found: dict[str, Any]) -> str:
    return f"{found['recipe']}/{found['variant']}"


def _name(found: dict[str, Any]) -> str:
    """The name of a recipe, marked where it was not measured with the passes of today."""
    return f"{_plain_name(found)}{OLDER_MARK * (_state(found) != CURRENT)}"


@cache
def _config(recipe: str, variant: str) -> dict[str, Any] | None:
    """The config of a variant in the catalogue; None where it is gone."""
    entry = find_entry(recipe, ROOT / "recipes")
    path = entry.folder / next((one.file for one in entry.info.recipes if one.name == variant), "")
    return read_document(path).plain() if path.is_file() else None


def _state(found: dict[str, Any]) -> str:
    return told_of(found, _config(found["recipe"], found["variant"]))


def _states(results: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for found in results:
        yield _name(found), found["date"][:10], found["environment"]["revision"] or "unknown", _state(found)


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for found in results:
        for row in found["rows"]:
            if row["name"] in SHOWN:
                ratio = ratio_of(found, row)
                theirs = _figure(row["baseline"]["value"], row["unit"]) if row["baseline"] else ""
                compiled = ", ".join(f"{_figure(peer['value'], row['unit'])} ({of_peer(peer)})" for peer in row["peers"])
                ours = _figure(row["optimised"]["value"], row["unit"])
                yield _name(found), found["weights"], row["name"].replace("_", " "), theirs, ours, ratio, compiled


def _cells(results: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for found in results:
        for cell in found["grid"]:
            size = f"{cell['batch']} x {cell['length']}" if cell["length"] else str(cell["batch"])
            theirs, ours = (_figure(cell[side]["value"], cell["unit"]) for side in ("baseline", "optimised"))
            written = str(cell.get("new_tokens") or OLD_TOKENS) if cell["figure"] == "decode" else ""
            yield _name(found), cell["figure"] or "calls", size, written, theirs, ours, f"{cell['ratio']['value']:.2f}x"


def _decode(records: dict[str, Any]) -> Iterator[Sequence[str]]:
    for piece in sorted(name for name in records if name.startswith("decode-")):
        for model, told in records[piece]["figures"].items():
            limit = told["bytes_a_token"] / told["read"]
            yield model, f"the limit: {told['bytes_a_token'] / 1e9:.2f} GB read", f"{limit * 1e3:.2f} ms", "100 %"
            for tried, found in told["tried"].items():
                if "failed" in found:
                    yield model, tried, "failed", ""
                else:
                    yield model, tried, f"{found['token'] * 1e3:.2f} ms", f"{limit / found['token']:.0%}".replace("%", " %")


def _kernels(record: dict[str, Any]) -> Iterator[Sequence[str]]:
    for side in record["figures"]["sides"]:
        alone = f"{side['kernels']['total'] * 1e3:.2f} ms" if side["kernels"] else ""
        call = side["seconds"]["32"]
        yield side["side"], f"{call * 1e3:.2f} ms", alone, f"{32 / call:,.0f}"


def _components(records: dict[str, Any]) -> Iterator[Sequence[str]]:
    for piece in sorted(name for name in records if name.endswith("-kernels")):
        for name, told in records[piece]["figures"].get("components", {}).items():
            calls = [next(iter(side["seconds"].values())) for side in told["sides"]]
            cells = [f"{second * 1e3:.2f} ms" for second in calls]
            alone = [f"{side['kernels']['total'] * 1e3:.2f} ms" for side in told["sides"]]
            nearness = [f"{min(side['cosine'].values()):.6f}" for side in told["sides"]]
            yield name, cells[0], alone[0], cells[1], alone[1], f"{calls[0] / calls[1]:.2f}x", ", ".join(nearness)


def _placed(results: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for found in results:
        nodes, time = placed(found)
        fell_back = (found["placement"] or {}).get("fell_back", {})
        elsewhere = ", ".join(f"{operator} {count}" for operator, count in fell_back.items())
        yield _name(found), nodes, time.removesuffix(" of the time"), elsewhere


def _figure(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.4g}" if not unit else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
