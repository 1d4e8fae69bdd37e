"""Measures this project against its peers, side by side, and writes docs/performance.json and docs/performance.md.

    python scripts/bench_suite.py                       all sections, what has been measured already left out
    python scripts/bench_suite.py --only encoders       one section (--only again for more), measured anew
    python scripts/bench_suite.py --only encoders --case "ViT base"
    python scripts/bench_suite.py --prepare             the peers' environments alone
    python scripts/bench_suite.py --page                the page alone, from the results file

Peers get environments of their own in the cache folder, with the versions that work together; one that cannot be had is
named with the reason. Sides take turns on the same machine with the same number of threads. A section takes below ten minutes
once its models and environments are made; what is made stays in the cache folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from performance import building, commands, decoding, encoders
from performance.contest import PeerFailed, Terms
from performance.page import write_page
from performance.passes import passes_of
from performance.peers import PEERS, environment
from performance.record import Record, Row

from runner.bench.environment import describe
from runner.errors import RecipeError
from runner.targets.target import usable_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "performance.json", ROOT / "docs" / "performance.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onnx-recipes-bench"


@dataclass(frozen=True)
class Section:
    """One part of the suite: its cases by name, those that are measured unasked, what measures one, and the recipes of one."""

    name: str
    cases: Callable[[], Sequence[str]]
    measure: Callable[[str, Path, Terms], list[Row]]
    rounds: int
    recipes: Callable[[str], Sequence[str]]
    on_request: Sequence[str] = ()


SECTIONS = (
    Section("build", building.cases, building.measure, 2, building.recipes_of, building.LARGE),
    Section("cached-run", commands.cached_cases, commands.measure_cached, 5, lambda _: ()),
    Section("start-up", commands.start_cases, commands.measure_start, 9, lambda _: ()),
    Section("encoders", encoders.cases, encoders.measure, 7, encoders.recipes_of),
    Section("decode", decoding.cases, decoding.measure_decode, 5, decoding.recipes_of, decoding.TRIED),
    Section("first-token", decoding.first_token_cases, decoding.measure_first_token, 5, decoding.recipes_of),
)


def main() -> None:
    """Measures what is asked for and writes results and page after every case."""
    asked = _arguments()
    record = Record(asked.into)
    cache: Path = asked.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    failures = []
    if asked.prepare:
        failures = [told for peer in PEERS if (told := _prepare(peer.name, cache))]
    elif not asked.page:
        failures = _measure(asked, record, cache)
    write_page(record, asked.page_file)
    if failures:
        sys.exit("\n".join(failures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[one.name for one in SECTIONS], help="a section; repeatable")
    parser.add_argument("--case", action="append", metavar="NAME", help="a case of the sections; repeatable")
    parser.add_argument("--rounds", type=int, help="turns of every side; each section has its own default")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every side; one a core by default")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: for a busy machine, with --threads 1"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments and models")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the results file")
    parser.add_argument("--page-file", type=Path, default=PAGE, help="the page")
    parser.add_argument("--prepare", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--page", action="store_true", help="write the page from the results file and stop")
    asked = parser.parse_args()
    if asked.clock == "processor" and asked.threads != 1:
        parser.error("--clock processor needs --threads 1: threads that wait for one another work too")
    sections = [one for one in SECTIONS if not asked.only or one.name in asked.only]
    known = dict.fromkeys(case for one in sections for case in (*one.cases(), *one.on_request))
    if unknown := [case for case in asked.case or () if case not in known]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    return asked


def _prepare(name: str, cache: Path) -> str | None:
    peer = next(one for one in PEERS if one.name == name)
    try:
        environment(peer, cache)
    except PeerFailed as error:
        return f"{name}: {error}"
    return None


def _measure(asked: argparse.Namespace, record: Record, cache: Path) -> list[str]:
    """Returns what failed, a line each."""
    sections = [one for one in SECTIONS if not asked.only or one.name in asked.only]
    failures = []
    for section in sections:
        for case in (*section.cases(), *section.on_request):
            wanted = case in asked.case if asked.case else case not in section.on_request
            if not wanted or (not asked.only and not asked.case and record.has(section.name, case)):
                continue
            print(f"{section.name}: {case}", flush=True)
            terms = Terms(asked.threads, asked.rounds or section.rounds, asked.clock)
            try:
                rows = section.measure(case, cache, terms)
            except (RecipeError, PeerFailed) as error:
                failures.append(f"{section.name}: {case}: {error}")
                continue
            _show(rows)
            environment_now = describe(0.0).model_dump(mode="json", exclude={"busy"})
            command = f"python scripts/bench_suite.py --only {section.name}"
            record.put(section.name, case, rows, environment_now, command, passes_of(section.recipes(case)))
            write_page(record, asked.page_file)
    return failures


def _show(rows: Sequence[Row]) -> None:
    for row in rows:
        told = ", ".join(f"{name} {value:.4g} {row.unit}" for name, value in row.values.items())
        verdict = "" if row.met is None else f"; {row.of} {row.ratio:.3f}, bar {row.bar}: {'met' if row.met else 'missed'}"
        print(f"  {row.case}: {told}{verdict}", flush=True)
        for name, why in row.failed.items():
            print(f"    {name}: {why}", flush=True)


if __name__ == "__main__":
    main()
