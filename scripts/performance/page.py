"""docs/performance.md, from the results file: a table for each section, with its command and what the figures mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from performance.passes import changed_since
from performance.record import Record
from runner.templating.results import OLDER_MARK

_TITLES = {
    "build": (
        "Making an int4 language model",
        "Peaks are those of the whole process tree, sampled every 50 ms. Resident memory counts pages of mapped "
        "checkpoints, which the kernel can drop; anonymous memory does not. The builder is onnxruntime-genai's own, of "
        "the same environment, with its defaults. Wall time is the whole command with an empty store, the check against "
        "the source included.",
    ),
    "cached-run": (
        "A run with nothing left to do",
        "The same configuration (OnnxConversion, OrtTransformersOptimization) behind one run of each; wall time of the "
        "command.",
    ),
    "start-up": ("Start of a command", "Wall time until the command has printed and ended."),
    "encoders": (
        "Encoders",
        "One input: a text of 128 tokens, a picture of 224 x 224, for CLIP a picture and ten captions of 12 tokens. Every"
        " graph runs in the same onnxruntime, ours with the session options of `recipe bench` (a column shows it "
        "without), those of optimum and Olive with none. optimum: `optimum-cli export onnx --optimize`; Olive: "
        "OnnxConversion and OrtTransformersOptimization with their defaults."
        " Cosines of MiniLM are of eight texts of the recipe's sentences, those of random weights of random tokens and pixels.",
    ),
    "decode": (
        "Decoding",
        "48 tokens, one after the other, greedy, behind a prompt of 128. llama.cpp has the same weights, quantised by its"
        " own tool, and is built without its AMX kernels, which fault in the virtual machine measured here (pip without its "
        "cache, CMAKE_ARGS with -mno-amx-tile, -mno-amx-int8 and -mno-amx-bf16 in CMAKE_C_FLAGS and CMAKE_CXX_FLAGS). "
        "The memory's limit is the bytes that a token reads (weights of products, keys and values) over the "
        "bandwidth that the same threads reach when they only read. Perplexities are over that of the same weights in 16 bits: "
        "llama.cpp's Q4_0 is rounding. Settings are each in turns with the recipe's own, for speed alone; what they do to the "
        "answers is told in docs/quantization.md. At 1B the recipe is calibrated on two samples here, which changes no speed.",
    ),
    "first-token": (
        "First token",
        "From the prompt of 128 tokens to the first token. Most of it is products, and ONNX Runtime's of 4-bit weights with "
        "many rows are hardly faster than PyTorch's in fp32 on this processor; on an AMD EPYC, where PyTorch took 1.6 times as "
        "long at 1B, the ratios were 0.65 and 0.51. The setting widens blocks of 32 to fp32, with which a decoded token takes "
        "1.4 times as long.",
    ),
}
_INTRODUCTION = """# Performance

What this project takes beside its peers: the same machine, the same number of threads, sides in turns, medians, and ratios
within a round. A ratio is what counts; absolute figures of other machines differ. `scripts/bench_suite.py` installs the peers
into environments of their own, measures, and writes this page and performance.json. A bar is what the project holds itself to,
met or not. "Processor time, 1 thread" marks figures of a busy machine: the work of a process, whatever others did meanwhile
(`--clock processor --threads 1`). Of two equal models the one that is loaded first was up to 15 % slower at decoding there, and
ours is loaded first. ‡ behind a name: the recipe's passes have changed since it was measured, or nobody wrote down which they
were; a line below the table says how.

    python scripts/bench_suite.py            # all sections; what is measured already is left out
    python scripts/bench_suite.py --only encoders --case "ViT base"
"""


def write_page(record: Record, path: Path) -> None:
    """Writes the page."""
    path.write_text("\n".join([_INTRODUCTION, *_sections(record)]).rstrip() + "\n", encoding="utf-8")


def _sections(record: Record) -> Iterator[str]:
    for name, (title, about) in _TITLES.items():
        section = record.sections.get(name)
        if section is None:
            continue
        older = {name: changed_since(case.get("recipes")) for name, case in section["cases"].items()}
        rows = [
            {**row, "mark": OLDER_MARK if older[name] else ""}
            for name, case in section["cases"].items()
            for row in case["rows"]
        ]
        yield f"## {title}\n"
        yield f"`{section['command']}`. {about}\n"
        yield from _table(rows)
        yield ""
        yield from _footnotes(rows)
        yield from _changes(older)
        yield from _machines(section["cases"])
        yield ""


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sides = list(dict.fromkeys(side for row in rows for side in row["values"]))
    compared = any(row["ratio"] is not None for row in rows)
    head = ["case", *sides, *(["ratio", "bar", ""] if compared else [])]
    yield _line(head)
    yield _line(["---", *["---:"] * len(sides), *(["---", "---", "---"] if compared else [])])
    for row in rows:
        cells = [f"{row['case']}{row['mark']}", *(_value(row, side) for side in sides)]
        if compared:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ({row['of']})"
            verdict = {True: "met", False: "**missed**", None: ""}[row["met"]]
            cells += [ratio, row["bar"] or "", verdict]
        yield _line(cells)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(row: Mapping[str, Any], side: str) -> str:
    if side in row["failed"]:
        return "failed"
    value = row["values"].get(side)
    return "" if value is None else f"{value:.3g} {row['unit']}" if value < 1000 else f"{value:,.0f} {row['unit']}"


def _footnotes(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["remark"]:
            yield f"- {row['case']}: {row['remark']}."
        for side, why in row["failed"].items():
            yield f"- {row['case']}: {side} failed: {why}"


def _changes(older: Mapping[str, str | None]) -> Iterator[str]:
    """One line for each thing that has changed."""
    for change in dict.fromkeys(filter(None, older.values())):
        yield f"- {OLDER_MARK} {change}: {'; '.join(name for name, one in older.items() if one == change)}."


def _machines(cases: Mapping[str, Any]) -> Iterator[str]:
    """One line for each machine, day and set of versions: a section may have been measured in pieces."""
    told: dict[str, list[str]] = {}
    for name, case in cases.items():
        one = case["environment"]
        packages = ", ".join(f"{package} {one['packages'][package]}" for package in _TOLD if package in one["packages"])
        busy = max((row["busy"] or 0.0 for row in case["rows"]), default=0.0)
        load = f"; others used up to {100 * busy:.0f} % of the machine meanwhile" if busy >= 0.1 else ""
        revision = one.get("revision") or "unknown"
        key = json.dumps([one["cpu"], one["cores"], case["date"], one["flags"], packages, revision])
        told.setdefault(key, []).append(f"{name}{load}")
    for key, names in told.items():
        cpu, cores, date, flags, packages, revision = json.loads(key)
        machine = f"{cpu}, {cores} cores ({', '.join(flags)}), {date}"
        yield f"- Measured on {machine}, {packages}, revision {revision}: {'; '.join(names)}."


_TOLD = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
