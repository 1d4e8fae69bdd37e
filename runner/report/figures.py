"""How figures are written for people: with a unit that fits their size, and what a ratio means in words."""

from __future__ import annotations

from runner.bench.results import Ratio, Row, Verdict

_WORDS = {"ms": "faster", "s": "faster", "bytes": "smaller"}
_SLOW = {"faster": "slower", "smaller": "larger"}


def figure(value: float, unit: str) -> str:
    """Returns a figure with three significant digits and its unit; bytes as kB, MB or GB (powers of ten)."""
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= size:
                return f"{significant(value / size)} {name}"
        return f"{value:.0f} B"
    if not unit:
        return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
    return f"{significant(value)} {unit}"


def significant(value: float) -> str:
    """Returns three significant digits, without an exponent; whole numbers from 100 on."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    while abs(value) * 10**digits < 100 and digits < 6:
        digits += 1
    return f"{value:.{digits}f}"


def gain(row: Row) -> str:
    """Returns what the ratio means: ``2.10x faster``, ``3.8x smaller``, ``+2.4 %``; empty without a baseline."""
    if row.ratio is None:
        return ""
    if not row.unit:
        change = row.ratio.value - 1
        return f"{change:+.1%}".replace("%", " %")
    times = row.ratio.value if row.higher_is_better else 1 / row.ratio.value
    word = "faster" if row.unit.endswith("/s") else _WORDS.get(row.unit, "better")
    if row.name == "peak_rss":
        word = "smaller"
    if times < 1:
        times, word = 1 / times, _SLOW.get(word, "worse")
    return f"{significant(times)}x {word}" if abs(times - 1) >= 0.005 else "the same"


def is_better(row: Row) -> bool | None:
    """Returns whether the optimised side is better; None where both are within 2 % of one another or nothing is compared."""
    if row.ratio is None or abs(row.ratio.value - 1) < 0.02:
        return None
    return (row.ratio.value > 1) == row.higher_is_better


def spread(ratio: Ratio | None) -> str:
    """Returns the ratio and the range of the rounds: ``0.48x (0.46-0.51)``."""
    if ratio is None:
        return ""
    value = f"{significant(ratio.value)}x"
    if ratio.low == ratio.high:
        return value
    return f"{value} ({significant(ratio.low)}-{significant(ratio.high)})"


def bar(verdict: Verdict) -> str:
    """Returns the bar as people write it: ``≤ 1.05x``."""
    return verdict.bar.replace("<=", "≤").replace(">=", "≥")
