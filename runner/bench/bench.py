"""Measures an optimised model against the model that it came from: one sitting, each in its own process, in turns."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from runner.bench.answers import accuracy, compare, similarities
from runner.bench.environment import OtherLoad, describe
from runner.bench.inputs_record import Inputs, Request, Sizes
from runner.bench.results import Cell, Ratio, Results, Row, Side, host_label, judge
from runner.bench.scenarios import BATCH, FIGURES, NEW_TOKENS, STEPS, draws, generates, rate_unit, speaks, transcribes
from runner.errors import InvalidRecipe, Problem, RunFailed, did_you_mean
from runner.evaluation.metric import Metric
from runner.evaluation.perplexity import perplexity
from runner.evaluation.picture import mean_psnr
from runner.evaluation.retention import correlations
from runner.evaluation.size import size_on_disk
from runner.evaluation.subject_process import SubjectProcess, failed, start_python, stop
from runner.evaluation.word_errors import word_error_rate
from runner.models.handle import ModelHandle
from runner.recipe.info import Evaluation, Gate
from runner.targets.target import Target

BUSY = 0.15
_SETTLE_SECONDS = 0.25  # threads of the side that has just worked spin for a moment
_LEAST_CALLS = 5
_GRID_ROUNDS, _GRID_CALLS = 3, 2
_FIRST_TOKENS = 3
_WARM_STEPS = 2
_ON_THEIR_OWN = ("generation", "transcription", "drawing")  # the models are not called input by input

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Contest:
    """Which models meet, and under which rules.

    Attributes:
        output: the optimised model.
        source: the model it came from; the baseline, in PyTorch.
        recipe: the recipe's id, or the configuration's name.
        variant: the variant's name, where there is one.
        model_id: the source model's id.
        evaluation: the data that judges.
        gates: metric to bar, as info.yml says them.
        folder: folder of the recipe, against which its data is looked up.
        target: what runs the optimised model.
        threads: threads of each side.
        rounds: how often each side has its turn.
        turn_seconds: how long a side calls its model in one turn.
        smoke: the models are tiny twins: measure, but judge nothing.
        source_digest: identity of the source model.
        fingerprint: identity of the optimised model.
        command: what was typed.
        sizes: batches and lengths by which the speed is measured.
        by_size: whether it is; without rounds nothing is timed, and the answers alone are compared.
        log: file for what the libraries print.
    """

    output: ModelHandle
    source: ModelHandle
    recipe: str
    variant: str | None
    model_id: str | None
    evaluation: Evaluation
    gates: dict[str, str]
    folder: Path
    target: Target
    threads: int
    rounds: int = 5
    turn_seconds: float = 1.0
    smoke: bool = False
    source_digest: str | None = None
    fingerprint: str | None = None
    command: str = ""
    sizes: Sizes = field(default_factory=Sizes)
    by_size: bool = True
    log: Path | None = None


def bench(contest: Contest, progress: Progress = lambda text, done, total: None) -> Results:
    """Measures both sides and returns what was found.

    Args:
        contest: the models and the rules.
        progress: told what is being done, and how many of how many actions are done.

    Raises:
        InvalidRecipe: a gate names a figure that does not exist.
        DataUnavailable: the evaluation data is not there.
        RecipeError: a model does not load or run, or its process died.
    """
    gates = _gates(contest)
    with tempfile.TemporaryDirectory(prefix="recipe-bench-") as scratch:
        sitting = _Sitting(contest, Path(scratch), progress)
        rows, grid = sitting.hold()
    environment = describe(sitting.busy)
    notes = [*sitting.inputs.notes]
    if contest.smoke:
        notes.append("tiny random-weight models: these figures say that everything runs, and nothing about the real model")
    if environment.busy > BUSY:
        notes.append(f"other processes used {environment.busy:.0%} of the machine meanwhile: repeat it on a quiet one")
    return Results(
        recipe=contest.recipe,
        variant=contest.variant,
        task=contest.source.task,
        target=contest.target.name,
        threads=contest.threads,
        rounds=contest.rounds,
        smoke=contest.smoke,
        model=contest.model_id,
        source_digest=contest.source_digest,
        fingerprint=contest.fingerprint,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=contest.command,
        host=host_label(environment.cpu, environment.cores),
        environment=environment,
        rows=rows,
        grid=grid,
        gates=() if contest.smoke else tuple(judge(gate, rows) for gate in gates),
        notes=tuple(notes),
    )


def _gates(contest: Contest) -> list[Gate]:
    unknown = [name for name in contest.gates if name not in FIGURES]
    if unknown:
        raise InvalidRecipe(
            *(
                Problem(
                    "unknown-gate", f"there is no figure '{name}' to hold a gate against", remedy=did_you_mean(name, FIGURES)
                )
                for name in unknown
            )
        )
    return [Gate.parse(name, bar) for name, bar in contest.gates.items()]


class _Sitting:
    """One benchmark from its first process to its last figure."""

    def __init__(self, contest: Contest, scratch: Path, progress: Progress) -> None:
        self.contest = contest
        self.scratch = scratch
        self.inputs = Inputs()
        self.busy = 0.0
        self._transcribes = transcribes(contest.output, contest.source)
        self._draws = draws(contest.output, contest.source)
        self._scenarios = _scenarios(contest.output, contest.source)
        self._heard: dict[str, list[str]] = {}
        self._drawn: dict[str, list[Path]] = {"baseline": [], "optimised": []}
        self._pixels = ""
        self._progress = progress
        self._done = 0
        self._total = 4 + contest.rounds * len(self._scenarios)
        self._seconds: dict[str, dict[str, list[float]]] = {"baseline": {}, "optimised": {}}

    def hold(self) -> tuple[tuple[Row, ...], tuple[Cell, ...]]:
        contest = self.contest
        self._say("preparing inputs")
        self.inputs = prepare(
            Request(contest.source, contest.output, contest.evaluation, contest.folder, self.scratch, contest.sizes),
            contest.log,
        )
        self._total += len(self.inputs.grid) if contest.by_size else 0
        with (
            SubjectProcess(contest.source, "baseline", contest.log) as baseline,
            SubjectProcess(contest.output, "optimised", contest.log) as optimised,
        ):
            sides = (baseline, optimised)
            loads = [self._load(side) for side in sides]
            others = OtherLoad(*(side.pid for side in sides))
            for number in range(contest.rounds):
                self._round(number, sides)
            self.busy = others.share()
            peaks = [float(side.ask("peak")["bytes"]) for side in sides]
            self._say("comparing answers")
            quality = self._quality(baseline, optimised)
            grid = self._grid(sides)  # last: the greatest batch is no part of the peak memory
        return (*self._timed(), *quality, *self._costs(loads, peaks)), grid

    def _say(self, text: str) -> None:
        self._progress(text, self._done, self._total)
        self._done += 1

    def _load(self, side: SubjectProcess) -> float:
        self._say(f"loading the {side.name} model")
        return side.load(self.contest.threads, self.contest.target.provider, self._scenarios[0] in _ON_THEIR_OWN)

    def _round(self, number: int, sides: Sequence[SubjectProcess]) -> None:
        """Both sides have their turn at every scenario; who begins changes from round to round."""
        order = sides if number % 2 == 0 else tuple(reversed(sides))
        for scenario in self._scenarios:
            self._say(f"round {number + 1} of {self.contest.rounds}: {scenario}")
            for side in order:
                time.sleep(_SETTLE_SECONDS)
                if scenario == "generation":
                    self._generation(side)
                elif scenario == "transcription":
                    self._transcription(side, warm=number > 0)
                elif scenario == "drawing":
                    self._drawing(side, number)
                else:
                    self._calls(side, scenario)

    def _note(self, side: SubjectProcess, figure: str, value: float) -> None:
        self._seconds[side.name].setdefault(figure, []).append(value)

    def _generation(self, side: SubjectProcess) -> None:
        """First tokens several times, then one long answer; the first call of a turn warms up and does not count."""
        firsts = []
        for _ in range(1 + _FIRST_TOKENS):
            firsts.append(side.ask("generate", prompt=self.inputs.prompt, new_tokens=1)["seconds"][0])
        seconds = side.ask("generate", prompt=self.inputs.prompt, new_tokens=NEW_TOKENS)["seconds"]
        self._note(side, "ttft", median(firsts[1:]) * 1e3)
        self._note(side, "decode", (len(seconds) - 1) / (seconds[-1] - seconds[0]))

    def _transcription(self, side: SubjectProcess, *, warm: bool) -> None:
        """All clips once; the first turn is preceded by one that does not count."""
        for _ in range(1 if warm else 2):
            answer = side.ask("transcribe", sounds=self.inputs.sounds)
        self._heard[side.name] = answer["texts"]
        self._note(side, "rtf", answer["seconds"] / self.inputs.sound_seconds)

    def _drawing(self, side: SubjectProcess, number: int) -> None:
        """One picture a round, each of another prompt; the first is preceded by a quick one that does not count."""
        prompts = self.inputs.prompts
        into = self.scratch / f"{side.name}-{number}.npy"
        for steps in (STEPS,) if number else (_WARM_STEPS, STEPS):
            answer = side.ask("draw", prompt=prompts[number % len(prompts)], steps=steps, into=str(into))
        self._drawn[side.name].append(into)
        self._pixels = "{1} x {0} pixels".format(*answer["size"])
        self._note(side, "image_time", answer["seconds"])
        self._note(side, "step_time", answer["step_seconds"])

    def _calls(self, side: SubjectProcess, scenario: str) -> None:
        feed = self.inputs.single if scenario == "latency" else self.inputs.batch
        seconds = median(side.ask("turn", feed=feed, seconds=self.contest.turn_seconds, least=_LEAST_CALLS)["seconds"])
        self._note(side, scenario, seconds * 1e3 if scenario == "latency" else BATCH / seconds)

    def _grid(self, sides: Sequence[SubjectProcess]) -> tuple[Cell, ...]:
        """Measures the speed at every size in turns, like the scenarios, in fewer and shorter ones."""
        unit = rate_unit(self.contest.source.task)
        cells: list[Cell] = []
        if not self.contest.by_size:
            return ()
        for case in self.inputs.grid:
            self._say(f"batches of {case.batch}" + (f" x {case.length} tokens" if case.length else ""))
            rates: dict[str, list[float]] = {side.name: [] for side in sides}
            for number in range(min(self.contest.rounds, _GRID_ROUNDS)):
                for side in sides if number % 2 == 0 else reversed(sides):
                    time.sleep(_SETTLE_SECONDS)
                    asked = {"feed": case.feed, "seconds": self.contest.turn_seconds / 2, "least": _GRID_CALLS, "warmup": 0}
                    rates[side.name].append(case.batch / median(side.ask("turn", **asked)["seconds"]))
            theirs, ours = (tuple(samples) for samples in rates.values())
            cells.append(
                Cell(
                    batch=case.batch,
                    length=case.length,
                    unit=unit,
                    baseline=Side(value=median(theirs), samples=theirs),
                    optimised=Side(value=median(ours), samples=ours),
                    ratio=Ratio.of_rounds(theirs, ours),
                )
            )
        return tuple(cells)

    def _timed(self) -> list[Row]:
        given = self.inputs.about
        about = {"latency": f"1 x {given}", "throughput": f"{BATCH} x {given}", "rtf": f"{given}, greedy"}
        about["image_time"] = f"{self._pixels}, {STEPS} steps"
        rows = []
        for name, theirs in self._seconds["baseline"].items():
            ours = self._seconds["optimised"][name]
            ratio = Ratio.of_rounds(tuple(theirs), tuple(ours))
            row = _row(name, tuple(ours), tuple(theirs), ratio=ratio, about=about.get(name))
            rows.append(row.model_copy(update={"unit": rate_unit(self.contest.source.task)}) if name == "throughput" else row)
        return sorted(rows, key=lambda row: list(FIGURES).index(row.name))

    def _quality(self, baseline: SubjectProcess, optimised: SubjectProcess) -> list[Row]:
        if self._transcribes:
            return [self._word_errors()] if self.inputs.transcripts else []
        if self._draws:
            return [_row_of(mean_psnr(*self._drawn.values()))]
        if speaks(self.contest.source):
            return [self._perplexity(baseline, optimised)] if self.inputs.windows else []
        files = [
            [self._outputs(side, feed, self.scratch / f"{side.name}-{at}.npz") for at, feed in enumerate(self.inputs.answers)]
            for side in (baseline, optimised)
        ]
        judged = [self._accuracy(*files)] if self.inputs.truth else []
        judged += self._similarity(baseline, optimised)
        return [*judged, *(_row_of(metric) for metric in compare(self.contest.source.task, self.inputs, *files))]

    def _outputs(self, side: SubjectProcess, feed: str, into: Path) -> Path:
        side.ask("outputs", feed=feed, into=str(into))
        return into

    def _accuracy(self, baseline: Sequence[Path], optimised: Sequence[Path]) -> Row:
        theirs, ours = accuracy(self.inputs, baseline), accuracy(self.inputs, optimised)
        return _row_of_both(ours, theirs)

    def _similarity(self, *sides: SubjectProcess) -> list[Row]:
        """How well both sides' similarities of pairs of sentences follow those that people gave."""
        if not self.inputs.pairs:
            return []
        theirs, ours = (
            similarities(
                self.contest.source.task,
                self.inputs,
                [
                    self._outputs(side, feed, self.scratch / f"{side.name}-pairs-{at}.npz")
                    for at, feed in enumerate(self.inputs.pairs)
                ],
            )
            for side in sides
        )
        return [_row_of_both(*both) for both in correlations(self.inputs.scores, theirs, ours)]

    def _word_errors(self) -> Row:
        theirs, ours = (word_error_rate(self.inputs.transcripts, self._heard[side]) for side in ("baseline", "optimised"))
        if ours.value and not theirs.value:
            return _row_of(ours, theirs)
        quotient = ours.value / theirs.value if theirs.value else 1.0
        return _row_of(ours, theirs, Ratio(value=quotient, low=quotient, high=quotient))

    def _perplexity(self, baseline: SubjectProcess, optimised: SubjectProcess) -> Row:
        windows = self.inputs.windows
        theirs, ours = (perplexity(side.ask("losses", windows=windows)["losses"], windows) for side in (baseline, optimised))
        ratios = [one / other for one, other in zip(ours.samples, theirs.samples, strict=True)]
        ratio = Ratio(value=ours.value / theirs.value, low=min(ratios), high=max(ratios))
        return _row_of(ours, theirs, ratio)

    def _costs(self, loads: Sequence[float], peaks: Sequence[float]) -> list[Row]:
        sizes = [size_on_disk(model.folder).value for model in (self.contest.source, self.contest.output)]
        rows = []
        for name, (theirs, ours) in {"size": sizes, "load": loads, "peak_rss": peaks}.items():
            quotient = ours / theirs
            rows.append(_row(name, (ours,), (theirs,), ratio=Ratio(value=quotient, low=quotient, high=quotient)))
        return rows


def _scenarios(output: ModelHandle, source: ModelHandle) -> tuple[str, ...]:
    if generates(output, source):
        return ("generation",)
    if transcribes(output, source):
        return ("transcription",)
    return ("drawing",) if draws(output, source) else ("latency", "throughput")


def _row(name: str, ours: tuple[float, ...], theirs: tuple[float, ...], *, ratio: Ratio, about: str | None = None) -> Row:
    figure = FIGURES[name]
    return Row(
        name=name,
        unit=figure.unit,
        higher_is_better=figure.higher_is_better,
        about=about or figure.about,
        baseline=Side(value=median(theirs), samples=theirs),
        optimised=Side(value=median(ours), samples=ours),
        ratio=ratio,
    )


def _row_of(ours: Metric, theirs: Metric | None = None, ratio: Ratio | None = None) -> Row:
    return Row(
        name=ours.name,
        unit=ours.unit,
        higher_is_better=ours.higher_is_better,
        about=ours.note or FIGURES[ours.name].about,
        baseline=Side(value=theirs.value, samples=theirs.samples) if theirs else None,
        optimised=Side(value=ours.value, samples=ours.samples),
        ratio=ratio,
    )


def _row_of_both(ours: Metric, theirs: Metric) -> Row:
    """Returns the row with its ratio, where the baseline has something to divide by."""
    if theirs.value <= 0:
        return _row_of(ours, theirs)
    quotient = ours.value / theirs.value
    return _row_of(ours, theirs, Ratio(value=quotient, low=quotient, high=quotient))


def prepare(request: Request, log: Path | None = None) -> Inputs:
    """Makes the inputs of both sides in a process of its own.

    Raises:
        RecipeError: what that process reported.
        RunFailed: it died.
    """
    stderr = log.open("a", encoding="utf-8") if log else None
    try:
        process = start_python("runner.bench.inputs", stderr, TRANSFORMERS_VERBOSITY="error")
    finally:
        if stderr:
            stderr.close()
    try:
        answer, _ = process.communicate(request.to_line() + "\n")
    finally:
        stop(process)
    if not answer.strip():
        raise RunFailed(
            "worker-died",
            f"the process that prepares inputs ended with code {process.returncode}",
            log=str(log) if log else None,
        )
    told = json.loads(answer)
    if "failed" in told:
        raise failed(told["failed"], "preparing inputs", log)
    return Inputs.from_json(told)
