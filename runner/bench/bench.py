"""Measures an optimised model against the model that it came from: one sitting, each in its own process, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from runner.bench.answers import accuracy, compare, similarities
from runner.bench.environment import OtherLoad, describe
from runner.bench.grid import CPU_LENGTHS, GPU_LENGTHS, SETTLE_SECONDS, Pace, cells_of_calls, cells_of_generation
from runner.bench.inputs_process import prepare
from runner.bench.inputs_record import Inputs, Request, Sizes
from runner.bench.results import Cell, Peer, Placement, Ratio, Results, Row, Side, host_label, judge
from runner.bench.scenarios import (
    BATCH,
    FIGURES,
    NEW_TOKENS,
    STEPS,
    draws,
    rate_unit,
    scenarios_of,
    speaks,
    transcribes,
)
from runner.errors import InvalidRecipe, Problem, RecipeError, did_you_mean
from runner.evaluation.metric import Metric
from runner.evaluation.perplexity import perplexity
from runner.evaluation.picture import mean_psnr
from runner.evaluation.retention import correlations
from runner.evaluation.size import size_on_disk
from runner.evaluation.subject_process import SubjectProcess
from runner.evaluation.torch_form import TorchForm
from runner.evaluation.word_errors import word_error_rate
from runner.models.handle import ModelHandle
from runner.recipe.info import Evaluation, Gate
from runner.targets.devices import device_memory_of
from runner.targets.target import Target

BUSY = 0.15
_LEAST_CALLS = 5
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
        passes: version by name of the passes that made it.
        settings: what `settings_digest` says of their options.
        command: what was typed.
        sizes: batches and lengths by which the speed is measured.
        by_size: whether it is; without rounds nothing is timed, and the answers alone are compared.
        baselines: how PyTorch runs the original; ratios are taken of the first, the others stand beside it.
        random_weights: the weights are random ones of the model's shapes: quality is not judged.
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
    passes: dict[str, int] | None = None
    settings: str | None = None
    command: str = ""
    sizes: Sizes = field(default_factory=Sizes)
    by_size: bool = True
    baselines: tuple[TorchForm, ...] = (TorchForm(),)
    random_weights: bool = False
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
    environment = describe(sitting.busy, contest.target)
    notes = [*sitting.inputs.notes, *sitting.notes]
    if contest.random_weights:
        notes.append("random weights of the model's shapes: these figures tell of speed and memory, and nothing of quality")
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
        passes=contest.passes,
        settings=contest.settings,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=contest.command,
        baseline=contest.baselines[0].title,
        weights="random" if contest.random_weights else "real",
        host=host_label(environment.cpu, environment.cores, environment.card),
        placement=sitting.placement,
        environment=environment,
        rows=rows,
        grid=grid,
        gates=() if contest.smoke or contest.random_weights else tuple(judge(gate, rows) for gate in gates),
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
        self._scenarios = scenarios_of(contest.output, contest.source)
        self._heard: dict[str, list[str]] = {}
        self._drawn: dict[str, list[Path]] = {}
        self._pixels = ""
        self._progress = progress
        self._done = 0
        self._total = 4 + contest.rounds * len(self._scenarios)
        self._seconds: dict[str, dict[str, list[float]]] = {"baseline": {}, "optimised": {}}
        self._peers: list[SubjectProcess] = []
        self._forms = {"baseline": contest.baselines[0], **{str(form): form for form in contest.baselines[1:]}}
        self.notes: list[str] = []
        self.placement: Placement | None = None

    def hold(self) -> tuple[tuple[Row, ...], tuple[Cell, ...]]:
        contest = self.contest
        self._say("preparing inputs")
        self.inputs = prepare(
            Request(contest.source, contest.output, contest.evaluation, contest.folder, self.scratch, contest.sizes),
            contest.log,
        )
        self._total += len(contest.baselines) - 1
        if contest.by_size:
            sizes = contest.sizes if self._scenarios == ("generation",) else Sizes()
            self._total += len(self.inputs.grid) + len(sizes.lengths) * max(1, len(sizes.batches))
        with ExitStack() as stack:
            baseline, optimised, *peers = (
                stack.enter_context(SubjectProcess(model, name, contest.log))
                for model, name in (
                    (contest.source, "baseline"),
                    (contest.output, "optimised"),
                    *((contest.source, str(form)) for form in contest.baselines[1:]),
                )
            )
            sides = (baseline, optimised)
            loads = [self._load(side) for side in sides]
            for peer in peers:
                self._beside(peer, partial(self._load, peer))
            self._peers = [peer for peer in peers if peer.name in self._forms]
            others = OtherLoad(*(side.pid for side in (*sides, *self._peers)))
            for number in range(contest.rounds):
                self._round(number, sides)
            self.busy = others.share()
            costs = {"load": loads, "peak_rss": [float(side.ask("peak")["bytes"]) for side in sides]}
            if contest.target.name == "cuda":
                held = device_memory_of([side.pid for side in sides])
                costs |= {"device_memory": [float(held[side.pid]) for side in sides]} if len(held) == len(sides) else {}
                self._tell_how(optimised)
            for peer in self._peers:
                peer.__exit__(None, None, None)
            self._say("comparing answers")
            grid = self._grid(sides)  # behind the peak memory, of which the greatest batch is no part
            quality = self._quality(baseline, optimised)
        self._place()
        return (*self._timed(), *quality, *self._costs(costs)), grid

    def _beside(self, peer: SubjectProcess, turn: Callable[[], object]) -> None:
        """Lets the original in another form have its turn; where it fails it is left out from there on, and that is noted."""
        try:
            turn()
        except RecipeError as error:
            form = self._forms.pop(peer.name)
            self._peers = [one for one in self._peers if one is not peer]
            self._seconds.pop(peer.name, None)
            self.notes.append(f"{form.title} is left out: {error.problems[0].cause}")

    def _tell_how(self, optimised: SubjectProcess) -> None:
        replays = optimised.ask("how")["replays"]
        if replays is not None:
            self.notes.append(f"inputs and outputs stay on the device; {'one' if replays else 'no'} CUDA graph a size")

    def _place(self) -> None:
        """Profiles the optimised model once more, by itself, where it does not run on the CPU alone."""
        if self.contest.target.name == "cpu":
            return
        with SubjectProcess(self.contest.output, "profiled", self.contest.log) as profiled:
            asked: dict[str, Any] = {"model": self.contest.output.to_json(), "threads": self.contest.threads}
            asked |= {"provider": self.contest.target.provider, "feed": self.inputs.single or ""}
            try:
                told = Placement.model_validate(profiled.ask("placement", **asked))
            except RecipeError as error:  # what was measured is not lost over it
                self.notes.append(f"no profile of where its nodes run: {error.problems[0].cause}")
            else:
                self.placement = told if told.nodes else None

    def _say(self, text: str) -> None:
        self._progress(text, self._done, self._total)
        self._done += 1

    def _load(self, side: SubjectProcess) -> float:
        self._say(f"loading the {side.name} model")
        form = str(self._forms.get(side.name, self.contest.baselines[0]))
        return side.load(self.contest.threads, self.contest.target.provider, self._scenarios[0] in _ON_THEIR_OWN, form)

    def _round(self, number: int, sides: Sequence[SubjectProcess]) -> None:
        """Both sides have their turn at every scenario; who begins changes from round to round."""
        order = sides if number % 2 == 0 else tuple(reversed(sides))
        for scenario in self._scenarios:
            self._say(f"round {number + 1} of {self.contest.rounds}: {scenario}")
            for side in order:
                self._turn(side, scenario, number)
            for peer in tuple(self._peers):
                self._beside(peer, partial(self._turn, peer, scenario, number))

    def _turn(self, side: SubjectProcess, scenario: str, number: int) -> None:
        time.sleep(SETTLE_SECONDS)
        if scenario == "generation":
            self._generation(side, warm=number > 0)
        elif scenario == "transcription":
            self._transcription(side, warm=number > 0)
        elif scenario == "drawing":
            self._drawing(side, number)
        else:
            self._calls(side, scenario)

    def _note(self, side: SubjectProcess, figure: str, value: float) -> None:
        self._seconds.setdefault(side.name, {}).setdefault(figure, []).append(value)

    def _generation(self, side: SubjectProcess, *, warm: bool) -> None:
        """First tokens several times, then one long answer; the first call of a turn warms up and does not count.

        On a GPU the first turn is preceded by an answer that does not count: kernels are compiled and chosen meanwhile.
        """
        firsts = []
        if not warm and self.contest.target.device == "gpu":
            side.ask("generate", prompt=self.inputs.prompt, new_tokens=NEW_TOKENS)
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
        self._drawn.setdefault(side.name, []).append(into)
        self._pixels = "{1} x {0} pixels".format(*answer["size"])
        self._note(side, "image_time", answer["seconds"])
        self._note(side, "step_time", answer["step_seconds"])

    def _calls(self, side: SubjectProcess, scenario: str) -> None:
        feed = self.inputs.single if scenario == "latency" else self.inputs.batch
        seconds = median(side.ask("turn", feed=feed, seconds=self.contest.turn_seconds, least=_LEAST_CALLS)["seconds"])
        self._note(side, scenario, seconds * 1e3 if scenario == "latency" else BATCH / seconds)

    def _grid(self, sides: tuple[SubjectProcess, SubjectProcess]) -> tuple[Cell, ...]:
        pace = Pace(self.contest.rounds, self.contest.turn_seconds)
        if not self.contest.by_size:
            return ()
        if self._scenarios == ("generation",):
            lengths = GPU_LENGTHS if self.contest.target.device == "gpu" else CPU_LENGTHS
            asked = (self.inputs.prompt, self.contest.sizes, lengths, sides, pace, self._say, self.notes.append)
            return tuple(cells_of_generation(*asked))
        return tuple(cells_of_calls(self.inputs.grid, sides, pace, rate_unit(self.contest.source.task), self._say))

    def _timed(self) -> list[Row]:
        given = self.inputs.about
        about = {"latency": f"1 x {given}", "throughput": f"{BATCH} x {given}", "rtf": f"{given}, greedy"}
        about["image_time"] = f"{self._pixels}, {STEPS} steps"
        rows = []
        for name, theirs in self._seconds["baseline"].items():
            ours = self._seconds["optimised"][name]
            ratio = Ratio.of_rounds(tuple(theirs), tuple(ours))
            row = _row(name, tuple(ours), tuple(theirs), ratio=ratio, about=about.get(name))
            row = row.model_copy(update={"peers": tuple(self._beside_row(name, ours))})
            rows.append(row.model_copy(update={"unit": rate_unit(self.contest.source.task)}) if name == "throughput" else row)
        return sorted(rows, key=lambda row: list(FIGURES).index(row.name))

    def _beside_row(self, name: str, ours: Sequence[float]) -> Iterator[Peer]:
        for side, form in self._forms.items():
            if side != "baseline":
                theirs = tuple(self._seconds[side][name])
                ratio = Ratio.of_rounds(theirs, tuple(ours))
                yield Peer(form=form.title, value=median(theirs), samples=theirs, ratio=ratio)

    def _quality(self, baseline: SubjectProcess, optimised: SubjectProcess) -> list[Row]:
        if self._transcribes:
            return [self._word_errors()] if self.inputs.transcripts and not self.contest.random_weights else []
        if self._draws:
            return [_row_of(mean_psnr(self._drawn["baseline"], self._drawn["optimised"]))]
        if speaks(self.contest.source):
            meaningful = self.inputs.windows and not self.contest.random_weights
            return [self._perplexity(baseline, optimised)] if meaningful else []
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

    def _costs(self, costs: dict[str, list[float]]) -> list[Row]:
        sizes = [size_on_disk(model.folder).value for model in (self.contest.source, self.contest.output)]
        rows = []
        for name, (theirs, ours) in {"size": sizes, **costs}.items():
            quotient = ours / theirs
            rows.append(_row(name, (ours,), (theirs,), ratio=Ratio(value=quotient, low=quotient, high=quotient)))
        return rows


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
