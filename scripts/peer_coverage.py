"""How many configurations of a tree the runner plans, and how many run with tiny models: a table, and why the others do not.

    python scripts/peer_coverage.py DIR [--jobs 2] [--no-smoke] [--only PATTERN] [--results FILE]

DIR is any folder of Olive configurations: each .json file below it with an `input_model` and `passes` is one. A configuration
made for an execution provider that this runner does not serve belongs to another runner and is only counted. The others are
planned (`recipe run CONFIG --dry-run`); those that need no script of theirs are then run (`--smoke`), each in a process of its
own. Results are kept in FILE, so that an interrupted run goes on where it stopped; a change of the runner's code or of a
configuration makes its results stale.

Exit code: 0, or 3 when the runner crashed on a configuration.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from runner.engine.smoke_many import Commands, Finished

ROOT = Path(__file__).resolve().parents[1]
PLAN_SECONDS, SMOKE_SECONDS = 120.0, 600.0
CRASHED = 3
SERVED = ("cpuexecutionprovider", "cudaexecutionprovider", "dmlexecutionprovider")
ELSEWHERE = "belongs to another runner"
_SCRIPT = re.compile(r'"script|script"|\.py')


@dataclass(frozen=True)
class Config:
    """One configuration.

    Attributes:
        name: its path below the tree.
        path: where it is.
        content: its text.
        elsewhere: it is made for another runner's execution provider or device.
    """

    name: str
    path: Path
    content: str
    elsewhere: bool

    @property
    def scripted(self) -> bool:
        """Returns whether it names a Python script of its own."""
        return _SCRIPT.search(self.content) is not None


@dataclass(frozen=True)
class Result:
    """What came of one command.

    Attributes:
        key: what the result depends on.
        name: the configuration.
        verb: ``plan`` or ``run``.
        state: ``done``, ``refused`` (a pass of another runner's, named as such), ``failed`` or ``crashed``.
        code: exit code; None after a timeout.
        seconds: wall time.
        errors: the problems that were told, one line each.
    """

    key: str
    name: str
    verb: str
    state: str
    code: int | None
    seconds: float
    errors: tuple[str, ...]


def find_configs(tree: Path, only: str = "*") -> list[Config]:
    """Returns the configurations below `tree` whose path fits the pattern, in order."""
    found = []
    for path in sorted(tree.rglob("*.json")):
        name = path.relative_to(tree).as_posix()
        if any(part.startswith(".") for part in path.relative_to(tree).parts) or not fnmatch.fnmatch(name, only):
            continue
        try:
            content = path.read_text(encoding="utf-8")
            data = json.loads(content)
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and isinstance(data.get("input_model"), dict) and data.get("passes"):
            found.append(Config(name, path, content, _elsewhere(data)))
    return found


def _elsewhere(data: Mapping[str, Any]) -> bool:
    """Says whether the target, or the only system, is for a provider or device that is not served here."""
    engine = data.get("engine") or {}
    systems = data.get("systems") or {}
    target = data.get("target") or engine.get("target")
    system = systems.get(target) if isinstance(target, str) else target
    if system is None and len(systems) == 1:
        system = next(iter(systems.values()))
    text = json.dumps(system or {}).lower()
    providers = re.findall(r'"(\w+executionprovider)"', text)
    return '"npu"' in text or (bool(providers) and providers[0] not in SERVED)


def code_version() -> str:
    """Returns a digest of the runner's code: a result of another version of it is measured again."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "runner").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Records:
    """Results in a file, one JSON object a line; the newest of a key counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        known = [json.loads(line) for line in lines if line.strip()]
        self._known = {one["key"]: Result(**{**one, "errors": tuple(one["errors"])}) for one in known}

    def get(self, key: str) -> Result | None:
        """Returns the result of a key, or None."""
        return self._known.get(key)

    def put(self, result: Result) -> None:
        """Keeps a result."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")


@dataclass(frozen=True)
class Lab:
    """Where commands run: a scratch folder whose cache all share, so that a tiny model is made once."""

    folder: Path
    version: str
    records: Records
    threads: int
    commands: Commands

    def result(self, config: Config, verb: str) -> Result:
        """Returns the known result of a command, or that of running it now."""
        key = hashlib.sha256(f"{self.version}\0{verb}\0{config.content}".encode()).hexdigest()
        known = self.records.get(key)
        if known is not None:
            return known
        made = self._run(config, verb, key)
        self.records.put(made)
        return made

    def _run(self, config: Config, verb: str, key: str) -> Result:
        output = self.folder / "output" / key[:16]
        flags, limit = (["--dry-run"], PLAN_SECONDS) if verb == "plan" else (["--smoke", "--offline"], SMOKE_SECONDS)
        shared = ["--config", str(config.path), "--output-dir", str(output), "--threads", str(self.threads)]
        done = self.commands.run(["run", *shared, *flags], self.folder, limit)
        shutil.rmtree(output, ignore_errors=True)
        return Result(key, config.name, verb, _state(done), done.code, done.seconds, done.problems)


def _state(done: Finished) -> str:
    if done.code == 0:
        return "done"
    if done.crashed:
        return "crashed"
    return "refused" if any(ELSEWHERE in problem for problem in done.problems) else "failed"


def cover(configs: Sequence[Config], lab: Lab, jobs: int, smoke: bool, console: Console) -> list[Result]:
    """Returns the result of every plan, and of every run that was asked for."""
    wanted = [config for config in configs if not config.elsewhere]
    with ThreadPoolExecutor(jobs) as pool, Progress(console=console, transient=True) as progress:
        plans = _gather(pool, lab, wanted, "plan", progress)
        planned = {result.name for result in plans if result.state == "done"}
        runnable = [config for config in wanted if smoke and config.name in planned and not config.scripted]
        return plans + _gather(pool, lab, runnable, "run", progress)


def _gather(pool: ThreadPoolExecutor, lab: Lab, configs: Sequence[Config], verb: str, progress: Progress) -> list[Result]:
    task = progress.add_task(verb, total=len(configs))
    futures = [pool.submit(lab.result, config, verb) for config in configs]
    results = []
    for future in futures:
        results.append(future.result())
        progress.advance(task)
    return results


def show(configs: Sequence[Config], results: Sequence[Result], smoke: bool, console: Console) -> None:
    """Prints the counts, then the errors, most frequent first, each with a configuration that has it."""
    plans = Counter(result.state for result in results if result.verb == "plan")
    runs = Counter(result.state for result in results if result.verb == "run")
    here = [config for config in configs if not config.elsewhere]
    free = [config for config in here if not config.scripted]
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="dim")
    for column in ("configs", "done", "refused by name", "failed", "crashed", "share"):
        table.add_column(column, justify="right", header_style="dim")
    _count(table, "planned", len(here), plans)
    if smoke:
        refused = {result.name for result in results if result.verb == "plan" and result.state == "refused"}
        unplanned = Counter({"refused": sum(config.name in refused for config in free)})
        failed_plans = len(free) - sum(runs.values()) - unplanned["refused"]
        _count(table, "run with tiny models", len(free), runs + unplanned + Counter({"failed": failed_plans}))
    console.print(table)
    console.print(
        f"{len(configs)} configurations: {len(configs) - len(here)} for another runner's provider, "
        f"{len(here) - len(free)} need a script of theirs and are only planned",
        highlight=False,
    )
    for verb in ("plan", "run"):
        _show_errors(verb, [result for result in results if result.verb == verb and result.state != "done"], console)


def _count(table: Table, name: str, total: int, states: Mapping[str, int]) -> None:
    share = f"{states.get('done', 0) / total:.1%}" if total else ""
    counts = (states.get(state, 0) for state in ("done", "refused", "failed", "crashed"))
    table.add_row(name, str(total), *(str(count) for count in counts), share)


def _show_errors(verb: str, results: Iterable[Result], console: Console) -> None:
    grouped: dict[str, list[str]] = {}
    for result in results:
        for error in dict.fromkeys(_alike(error) for error in result.errors or (f"exit code {result.code}, nothing told",)):
            grouped.setdefault(error, []).append(result.name)
    if not grouped:
        return
    table = Table(title=f"why a {verb} ended early", title_justify="left", box=None, pad_edge=False)
    for column in ("configs", "error", "for example"):
        table.add_column(column, header_style="dim", justify="right" if column == "configs" else "left", overflow="fold")
    for error, names in sorted(grouped.items(), key=lambda one: -len(one[1])):
        table.add_row(str(len(names)), error, names[0])
    console.print(table)


def _alike(error: str) -> str:
    """Returns the error without what only its configuration has: the name of the step."""
    return re.sub(r"(?:step )?'[^']*'(?= \(|: )", "a step", error, count=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Covers a tree; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--smoke", action=argparse.BooleanOptionalAction, default=True, help="run with tiny models as well")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="paths below DIR that fit, such as '*/cuda/*'")
    parser.add_argument("--results", type=Path, default=Path("peer-coverage.jsonl"), help="where results are kept")
    chosen = parser.parse_args(arguments)
    console = Console()
    configs = find_configs(chosen.tree.resolve(), chosen.only)
    if not configs:
        console.print(f"no configuration below {chosen.tree} fits '{chosen.only}'", highlight=False)
        return 2
    with tempfile.TemporaryDirectory(prefix="peer-coverage-") as scratch:
        threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
        with Commands(threads, Path(scratch, "cache")) as commands:
            lab = Lab(Path(scratch), code_version(), Records(chosen.results), threads, commands)
            results = cover(configs, lab, chosen.jobs, chosen.smoke, console)
    show(configs, results, chosen.smoke, console)
    return CRASHED if any(result.state == "crashed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
