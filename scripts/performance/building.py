"""int4 language models: memory, time and disk of making one, against onnxruntime-genai's builder run plainly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from performance.contest import PeerFailed, Terms, ratio
from performance.models import random_decoder
from performance.record import Row

ROOT = Path(__file__).resolve().parents[2]
OURS, BUILDER = "ours", "GenAI builder"
SAMPLE_SECONDS = 0.05
GB = 1e9
_BUILDER = """
import sys
from pathlib import Path
import onnxruntime_genai
sys.path.insert(0, str(Path(onnxruntime_genai.__file__).parent / "models"))
from onnxruntime_genai.models import builder
source, output = sys.argv[1:3]
arguments = (None, source, output, "int4", "cpu", output + "-work")
builder.create_model(*arguments, **builder.parse_extra_options(*arguments, ["hf_token=false"]))
"""


@dataclass(frozen=True)
class Shape:
    """A model that is built.

    Attributes:
        recipe: ours, ID/VARIANT.
        random: the model whose shape is taken.
        bars: of the peak resident memory in GB, and of the wall time against the builder.
        alone: the builder does not fit this kind of machine and is left out.
        overrides: laid over the recipe, so that both sides quantise by the same method.
    """

    recipe: str
    random: str
    bars: tuple[str, str | None]
    alone: bool = False
    overrides: tuple[str, ...] = ()


SHAPES: Mapping[str, Shape] = {
    "Llama-3.2-1B shape": Shape(
        "llama-3.2-1b-instruct/cpu-int4",
        "meta-llama/Llama-3.2-1B",
        ("<= 2.5", "<= 0.5"),
        overrides=("passes.build.int4_algo_config=default",),
    ),
    "Llama-3.1-8B shape": Shape("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B", ("<= 5.0", None), alone=True),
    "Qwen2.5-14B shape": Shape("qwen2.5-14b-instruct", "Qwen/Qwen2.5-14B", ("<= 6.0", None), alone=True),
}
LARGE = tuple(name for name, shape in SHAPES.items() if shape.alone)


@dataclass(frozen=True)
class Cost:
    """What a command took: wall seconds, and peaks of its whole process tree in bytes.

    Attributes:
        seconds: wall time.
        resident: resident memory, pages of mapped files included, which the kernel can drop.
        anonymous: resident memory that belongs to no file.
    """

    seconds: float
    resident: int
    anonymous: int


def cases() -> list[str]:
    """Returns the shapes that are built unasked."""
    return [name for name in SHAPES if name not in LARGE]


def recipes_of(case: str) -> Sequence[str]:
    """Returns the recipe that makes a shape's model."""
    return (SHAPES[case].recipe,)


def measure(case: str, cache: Path, terms: Terms) -> list[Row]:
    """Returns rows of resident memory, anonymous memory and time. A shape that only we can build is built once.

    Raises:
        PeerFailed: our run fails.
    """
    shape = SHAPES[case]
    work = cache / "decoders" / case.replace(" ", "-").lower()
    source = random_decoder(shape.random, work / "source")
    ours = [sys.executable, "-m", "runner", "run", shape.recipe, "--model-path", str(source), "--no-cache", "--force"]
    ours += [part for one in shape.overrides for part in ("--set", one)]
    commands = {OURS: [*ours, "--threads", str(terms.threads), "--output-dir", str(work / "built")]}
    if not shape.alone:
        commands[BUILDER] = [sys.executable, "-c", _BUILDER, str(source), str(work / "builder")]
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for number in range(1 if shape.alone else terms.rounds):
        for name in list(commands) if number % 2 == 0 else list(reversed(commands)):
            if name in failed:
                continue
            try:
                costs[name].append(_cost(commands[name], work, terms.threads))
            except PeerFailed as error:
                if name == OURS:
                    raise
                failed[name] = str(error)
    return _rows(case, shape, {name: one for name, one in costs.items() if name not in failed}, failed)


def _rows(case: str, shape: Shape, costs: Mapping[str, Sequence[Cost]], failed: Mapping[str, str]) -> list[Row]:
    def peak(kind: str) -> dict[str, float]:
        return {name: max(getattr(one, kind) for one in taken) / GB for name, taken in costs.items()}

    resident, anonymous = peak("resident"), peak("anonymous")
    seconds = {name: [one.seconds for one in taken] for name, taken in costs.items()}
    against = ratio(seconds[OURS], seconds[BUILDER]) if BUILDER in seconds else None
    remark = "the builder does not fit this machine's memory" if shape.alone else ""
    return [
        Row(f"{case}, peak resident memory", "GB", resident, resident[OURS], "our GB", shape.bars[0], failed, remark),
        Row(f"{case}, peak anonymous memory", "GB", anonymous),
        Row(
            f"{case}, wall time", "s", {name: median(one) for name, one in seconds.items()}, against, f"ours / {BUILDER}",
            shape.bars[1], failed,
        ),
    ]  # fmt: skip


def _cost(command: Sequence[str], work: Path, threads: int) -> Cost:
    """Runs a command with a store of its own, which is removed with what the command wrote."""
    store = work / "store"
    environment = {**os.environ, "RECIPE_CACHE": str(store), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    log = work / "build.log"
    with log.open("w", encoding="utf-8") as stream:
        started = time.perf_counter()
        running = subprocess.Popen(command, cwd=work, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        watch = _Watch(running.pid)
        watch.start()
        code = running.wait()
        seconds = time.perf_counter() - started
        watch.done.set()
        watch.join()
    for folder in ("store", "built", "builder", "builder-work"):
        shutil.rmtree(work / folder, ignore_errors=True)
    if code:
        raise PeerFailed(f"exit {code}: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")
    return Cost(seconds, watch.resident, watch.anonymous)


class _Watch(threading.Thread):
    """Samples the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self.done = threading.Event()
        self.resident = self.anonymous = 0

    def run(self) -> None:
        """Samples until `done` is set."""
        while not self.done.wait(SAMPLE_SECONDS):
            try:
                pids = [self._root.pid, *(one.pid for one in self._root.children(recursive=True))]
            except psutil.Error:
                return
            both = [_memory(pid) for pid in pids]
            self.resident = max(self.resident, sum(one for one, _ in both))
            self.anonymous = max(self.anonymous, sum(one for _, one in both))


def _memory(pid: int) -> tuple[int, int]:
    """Returns resident and anonymous bytes of a process, by /proc; both 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    known = {name: value for name, _, value in (line.partition(":") for line in lines)}
    kib = {name: int(known[name].split()[0]) for name in ("VmRSS", "RssAnon") if name in known}
    return 1024 * kib.get("VmRSS", 0), 1024 * kib.get("RssAnon", 0)
