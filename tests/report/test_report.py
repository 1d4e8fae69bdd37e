"""Results for people: on a terminal, in a pipe, as a page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runner.bench.results import Environment, Ratio, Results, Row, Side, Verdict
from runner.report.figures import figure, gain, significant
from runner.report.page import page, write_page
from runner.report.table import PIPE_WIDTH, print_results

ENVIRONMENT = Environment(
    cpu="AMD EPYC", cores=2, flags=("AVX2", "AVX-512 VNNI"), memory_bytes=25_000_000_000, system="Linux x86_64",
    python="3.11.7", packages={"onnxruntime": "1.32.0", "torch": "2.13.0"}, revision=None, busy=0.0,
)  # fmt: skip


def row(name: str, unit: str, higher: bool, theirs: float | None, ours: float) -> Row:
    return Row(
        name=name, unit=unit, higher_is_better=higher, about=f"how {name} was measured",
        baseline=None if theirs is None else Side(value=theirs), optimised=Side(value=ours),
        ratio=None if theirs is None else Ratio(value=ours / theirs, low=0.9 * ours / theirs, high=1.1 * ours / theirs),
    )  # fmt: skip


def results(variant: str = "cpu-int4", **changes: Any) -> Results:
    plain = Results(
        recipe="tiny", variant=variant, task="text-generation", target="cpu", threads=2, rounds=5, model="nobody/tiny",
        source_digest="a" * 64, fingerprint="b" * 64, date="2026-11-24T11:00:00Z", command="recipe bench tiny",
        host="amd-epyc-2c", environment=ENVIRONMENT, notes=("made on a busy machine",),
        rows=(
            row("decode", "tokens/s", True, 18.4, 203.0),
            row("ttft", "ms", False, 260.0, 140.0),
            row("perplexity", "", False, 21.9, 29.0),
            row("cosine", "", True, None, 0.9912),
            row("size", "bytes", False, 541e6, 90e6),
        ),
        gates=(
            Verdict(metric="decode", bar=">= 8x", value=11.03, met=True),
            Verdict(metric="perplexity", bar="<= 1.05x", value=1.324, met=False),
        ),
    )  # fmt: skip
    return plain.model_copy(update=changes)


RECEIPT: dict[str, Any] = {
    "recipe": "tiny", "variant": "cpu-int4", "smoke": False, "target": "cpu", "kind": "genai", "fingerprint": "b" * 64,
    "model": {"id": "nobody/<tiny>", "from": "hub", "digest": "a" * 64}, "made": "2026-11-24T11:00:00Z",
    "steps": [
        {
            "step": "build", "pass": "ModelBuilder", "seconds": 4.2, "bytes": 90_000_000, "parity": None,
            "options": {"precision": "int4", "rest": None, "extra": {"block": 32, "none": None}},
        },
        {"step": "tidy", "pass": "OnnxPeepholeOptimizer", "options": {}},
    ],
    "metrics": [{"name": "latency-avg", "value": 12.0, "unit": "ms", "higher_is_better": False, "samples": [], "note": "x"}],
    "files": {"model.onnx": {"size": 90_000_000, "sha256": "c" * 64}},
    "environment": {"packages": {"onnxruntime": "1.32.0", "torch": "absent"}}, "notes": ["an option does nothing"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.5, "ms", "1,234 ms"),
        (15.849, "ms", "15.8 ms"),
        (0.01234, "s", "0.0123 s"),
        (0.0, "s", "0 s"),
        (90_038_760, "bytes", "90.0 MB"),
        (999, "bytes", "999 B"),
        (0.99123, "", "0.9912"),
        (21.93, "", "21.93"),
    ],
)
def test_figures_have_three_digits_and_a_unit(value, unit, text):
    assert figure(value, unit) == text


def test_significant_digits_are_kept_for_small_numbers():
    assert significant(0.000123456) == "0.000123"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (row("decode", "tokens/s", True, 10, 100), "10.0x faster"),
        (row("ttft", "ms", False, 100, 200), "2.00x slower"),
        (row("size", "bytes", False, 400, 100), "4.00x smaller"),
        (row("load", "s", False, 1.0, 1.001), "the same"),
        (row("perplexity", "", False, 20, 21), "+5.0 %"),
        (row("cosine", "", True, None, 0.99), ""),
    ],
)
def test_a_ratio_is_told_in_words(made, text):
    assert gain(made) == text


def printed(terminal: bool, width: int) -> str:
    text = io.StringIO()
    print_results(results(), Console(file=text, force_terminal=terminal, width=width))
    return text.getvalue()


def test_a_piped_table_is_plain_and_has_every_figure_on_its_line():
    lines = printed(False, PIPE_WIDTH).splitlines()
    assert not any("\x1b" in line for line in lines)
    decode = next(line for line in lines if line.lstrip().startswith("decode"))
    for part in ("18.4 tokens/s", "203 tokens/s", "11.0x faster", "✓ ≥ 8x"):
        assert part in decode
    assert any("gate missed perplexity <= 1.05x: 1.324x" in line for line in lines)
    assert max(map(len, lines)) <= PIPE_WIDTH


def test_a_narrow_terminal_cuts_no_figure():
    text = printed(True, 110)
    assert "\x1b[" in text
    for part in ("18.4 tokens/s", "203 tokens/s", "0.9912"):
        assert part in text


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order, and on anything that would be fetched."""

    void = frozenset({"meta", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("made", [results(), results(gates=()), None])
def test_the_page_is_whole_and_fetches_nothing(made):
    html = page(made, RECEIPT)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert "nobody/&lt;tiny&gt;" in html
    assert "precision=int4, extra={block: 32}" in html
    assert "an option does nothing" in html


def test_the_page_is_written_where_it_should_be(tmp_path: Path):
    write_page(tmp_path / "deep" / "report.html", results(), RECEIPT)
    assert "✗ ≤ 1.05x" in (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
