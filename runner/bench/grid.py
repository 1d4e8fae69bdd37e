"""The speed of both sides by batch and length, in turns like the scenarios, in fewer and shorter ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Literal

from runner.bench.inputs_record import Case, Sizes
from runner.bench.results import Cell, Ratio, Side
from runner.bench.scenarios import GRID_NEW_TOKENS, NEW_TOKENS
from runner.errors import RecipeError
from runner.evaluation.subject_process import SubjectProcess

SETTLE_SECONDS = 0.25  # threads of the side that has just worked spin for a moment
ROUNDS, CALLS = 3, 2

Sides = tuple[SubjectProcess, SubjectProcess]


@dataclass(frozen=True)
class Pace:
    """How often and how long a side is called.

    Attributes:
        rounds: turns that each side gets.
        turn_seconds: how long a side calls its model in one turn.
    """

    rounds: int
    turn_seconds: float


@dataclass(frozen=True)
class Lengths:
    """How many tokens are written behind a prompt.

    Attributes:
        warm: by the answer that does not count.
        timed: by those that do.
    """

    warm: int
    timed: int


# A GPU chooses its kernels and captures its graph anew in the first tokens of an answer: as many must follow as in `decode`.
GPU_LENGTHS = Lengths(NEW_TOKENS, NEW_TOKENS)
CPU_LENGTHS = Lengths(2, GRID_NEW_TOKENS)


def cells_of_calls(cases: Sequence[Case], sides: Sides, pace: Pace, unit: str, say: Callable[[str], None]) -> Iterator[Cell]:
    """Yields the speed of calls at every size.

    Args:
        cases: the inputs.
        sides: baseline and optimised.
        pace: how often.
        unit: what a second has of.
        say: told what begins.
    """
    asked = {"seconds": pace.turn_seconds / 2, "least": CALLS, "warmup": 0}
    for case in cases:
        say(f"batches of {case.batch}" + (f" x {case.length} tokens" if case.length else ""))
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        for side in _turns(sides, pace.rounds):
            rates[side.name].append(case.batch / median(side.ask("turn", feed=case.feed, **asked)["seconds"]))
        yield _cell(None, case.batch, case.length, unit, *rates.values())


def cells_of_generation(
    prompt: Sequence[int],
    sizes: Sizes,
    lengths: Lengths,
    sides: Sides,
    pace: Pace,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> Iterator[Cell]:
    """Yields the speed of reading a prompt and of writing behind it, for every batch and length that is asked for.

    Args:
        prompt: ids that prompts of any length are made of.
        sizes: rows at once, and tokens of a prompt; nothing is measured where none are named.
        lengths: tokens behind a prompt.
        sides: baseline and optimised.
        pace: how often.
        say: told what begins.
        note: told of a size that a side does not take.
    """
    for rows in sizes.batches or (1,):  # single rows first: CUDA graphs serve them alone
        for length in sizes.lengths:
            ids = list(islice(cycle(prompt), length))
            size = f"{rows} x {length} tokens"
            say(size)
            try:
                for side in sides:
                    side.ask("generate", prompt=ids, new_tokens=lengths.warm, rows=rows)
                times: dict[str, list[list[float]]] = {side.name: [] for side in sides}
                for side in _turns(sides, pace.rounds):
                    asked = {"prompt": ids, "new_tokens": lengths.timed, "rows": rows}
                    times[side.name].append(side.ask("generate", **asked)["seconds"])
            except RecipeError as error:
                note(f"{size}: not measured: {error.problems[0].cause}")
                continue
            theirs, ours = times.values()
            yield _cell("prefill", rows, length, "tokens/s", *(_reading(rows * length, taken) for taken in (theirs, ours)))
            decoded = _cell("decode", rows, length, "tokens/s", *(_writing(rows, taken) for taken in (theirs, ours)))
            yield decoded.model_copy(update={"new_tokens": lengths.timed})


def _reading(tokens: int, taken: Sequence[Sequence[float]]) -> list[float]:
    """Returns the tokens a second until the first one is written, of each turn."""
    return [tokens / one[0] for one in taken]


def _writing(rows: int, taken: Sequence[Sequence[float]]) -> list[float]:
    """Returns the tokens a second behind the first one, of each turn."""
    return [rows * (len(one) - 1) / (one[-1] - one[0]) for one in taken]


def _turns(sides: Sides, rounds: int) -> Iterator[SubjectProcess]:
    """Yields the side whose turn it is; who begins changes from round to round."""
    for number in range(min(rounds, ROUNDS)):
        for side in sides if number % 2 == 0 else reversed(sides):
            time.sleep(SETTLE_SECONDS)
            yield side


def _cell(
    figure: Literal["prefill", "decode"] | None,
    batch: int,
    length: int | None,
    unit: str,
    theirs: Sequence[float],
    ours: Sequence[float],
) -> Cell:
    return Cell(
        figure=figure,
        batch=batch,
        length=length,
        unit=unit,
        baseline=Side(value=median(theirs), samples=tuple(theirs)),
        optimised=Side(value=median(ours), samples=tuple(ours)),
        ratio=Ratio.of_rounds(tuple(theirs), tuple(ours)),
    )
