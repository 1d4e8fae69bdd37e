"""The search itself: point after point, each an ordinary run, until the budget is spent or nothing is left to try."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.engine.events import Event
from runner.engine.plan import Plan
from runner.engine.request import Request
from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.evaluation.goals import needs_baseline
from runner.passes.table import options_of
from runner.recipe.choices import Point
from runner.recipe.config import RunConfig, SearchStrategy
from runner.recipe.load import load_point
from runner.search.aims import Aims, check_measurable
from runner.search.measure import StepFailed, Way, measured
from runner.search.pareto import front_of, ranked
from runner.search.sampling import next_point
from runner.search.space import Space, told
from runner.search.study import Study, Trial, key_for

DEFAULT_SAMPLES = 16


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        request: the run that varies; its output folder is where the winner goes.
        strategy: order, sampler and budget.
        aims: what is a good model.
        way: how a point is measured.
        plan: of the first point, with the model fetched.
        folder: where the search keeps what it finds.
    """

    request: Request
    strategy: SearchStrategy
    aims: Aims
    way: Way
    plan: Plan
    folder: Path

    @property
    def space(self) -> Space:
        """Returns the space of all points."""
        return Space.whole(self.request.loaded.axes, self.strategy.include_pass_params)

    @property
    def samples(self) -> int:
        """Returns how many points are tried at most."""
        asked = [one for one in (self.strategy.max_samples, self.strategy.max_iter) if one is not None]
        size = self.space.size()
        if asked:
            return min(*asked, size) if size is not None else min(asked)
        everything = size is not None and (size <= DEFAULT_SAMPLES or self.strategy.sampler == "sequential")
        return size if size is not None and everything else DEFAULT_SAMPLES

    @property
    def key(self) -> str:
        """Returns the digest of space, configuration, model and way of measuring: of what makes old figures still hold."""
        request, plan = self.request, self.plan
        axes = [[axis.name, axis.node.plain()] for axis in request.loaded.axes]
        config = request.loaded.tree.with_members(search_strategy=None, output_dir=None).plain()
        return key_for(
            {
                "axes": axes, "config": config, "model": plan.source.digest, "target": plan.target.name, "smoke": request.smoke,
                "threads": plan.threads, "rounds": self.way.rounds, "benched": self.way.benched,
                "steps": [step.ingredients.get("packages") for step in plan.steps],
            }
        )  # fmt: skip

    def at(self, point: Point, output: Path) -> Request:
        """Returns the run of one point.

        Raises:
            InvalidRecipe: its values do not go together.
        """
        loaded = load_point(self.request.loaded, point, options_of)
        return replace(self.request, loaded=replace(loaded, config=_judged_here(loaded.config)), output_dir=output)


def _judged_here(config: RunConfig) -> RunConfig:
    """Returns the configuration without its evaluator's goals: the search judges them, and a point may miss one."""
    evaluator = config.evaluators.get(config.evaluator or "")
    if evaluator is None:
        return config
    goals = [sub.goal for metric in evaluator.metrics for sub in metric.sub_types if sub.goal is not None]
    metrics = [
        metric.model_copy(update={"sub_types": [sub.model_copy(update={"goal": None}) for sub in metric.sub_types]})
        for metric in evaluator.metrics
    ]
    evaluators = {**config.evaluators, str(config.evaluator): evaluator.model_copy(update={"metrics": metrics})}
    relative = any(needs_baseline(goal) for goal in goals)
    return config.model_copy(update={"evaluators": evaluators, "evaluate_input_model": config.evaluate_input_model or relative})


@dataclass
class Found:
    """What came of a search.

    Attributes:
        study: all trials.
        ranked: those that were measured, the best first.
        front: numbers of those that no other one beats.
        stopped: why no further point was tried.
        further: how the points that are left can be tried; empty where none is.
    """

    study: Study
    ranked: list[Trial] = field(default_factory=list)
    front: tuple[int, ...] = ()
    stopped: str = ""
    further: str = ""


Listen = Callable[[Event], None]
Tell = Callable[[Trial, Search], None]


def run_search(search: Search, fresh: bool, listen: Listen, tell: Tell) -> Found:
    """Tries points until the budget is spent; what was tried before is not tried again.

    Args:
        search: what is searched.
        fresh: forget what was tried before.
        listen: told what a point's run does.
        tell: told of every trial when it is over.

    Raises:
        RunFailed: no point could be made.
        Interrupted: the trials that are over are kept.
        RecipeError: what would meet every point.
    """
    study = Study.open(search.folder, search.key, fresh)
    found = Found(study)
    stop = _Stop(search, time.monotonic())
    for point in _points(search, found, stop):
        trial = _try(search, found.study, point, listen)
        if trial.done and not found.ranked:
            check_measurable(search.aims, trial.figures)
        found.study = found.study.with_trial(trial)
        record(search, found)
        tell(trial, search)
    found.stopped, found.further = stop.told(found.study)
    record(search, found)
    shutil.rmtree(search.folder / "trials", ignore_errors=True)
    if not found.ranked:
        first = {trial.failed_step or trial.number: trial for trial in reversed(found.study.trials)}
        reasons = dict.fromkeys(str(trial.reason) for trial in reversed(first.values()))
        raise RunFailed("search-failed", f"none of {len(found.study.trials)} points could be made: {'; '.join(reasons)}")
    return found


def record(search: Search, found: Found) -> None:
    """Ranks the trials and writes search.json."""
    found.ranked = ranked(found.study.trials, search.aims)
    found.front = front_of(found.study.trials, search.aims)
    found.study.write(
        {
            "recipe": search.request.name,
            "model": search.request.config.input_model.model_path,
            "target": search.plan.target.name,
            "smoke": search.request.smoke,
            "objectives": [str(one) for one in search.aims.objectives],
            "goals": [str(one) for one in search.aims.goals],
            "strategy": search.strategy.model_dump(mode="json"),
            "space": {axis.name: axis.node.plain() for axis in search.request.loaded.axes},
            "size": search.space.size(),
            "best": found.ranked[0].number if found.ranked else None,
            "front": list(found.front),
            "trials": [_trial_json(trial, search) for trial in found.study.trials],
        }
    )


def _trial_json(trial: Trial, search: Search) -> dict[str, Any]:
    return {**trial.to_json(), "missed": list(search.aims.missed(trial.figures)) if trial.done else []}


@dataclass
class _Stop:
    """Says when enough was tried, and remembers why.

    Attributes:
        reason: why the search stopped before its budget was spent; empty where it did not.
        further: what goes on from there.
        left: whether points are left that this order of the search would try.
    """

    search: Search
    began: float
    reason: str = ""
    further: str = ""
    left: bool = False

    def now(self, study: Study, samples: int) -> bool:
        """Returns whether no further point is begun, with so many samples allowed."""
        strategy, aims = self.search.strategy, self.search.aims
        if strategy.stop_when_goals_met and any(trial.done and not aims.missed(trial.figures) for trial in study.trials):
            self.reason, self.further = "a point meets all goals", "without stop_when_goals_met the same search goes on"
        elif study.trials and strategy.max_time is not None and time.monotonic() - self.began > strategy.max_time:
            self.reason, self.further = f"{strategy.max_time:g} s are over", "the same command goes on from here"
        return bool(self.reason) or len(study.trials) >= samples

    def after(self, space: Space, study: Study) -> None:
        """Notes whether a space that is left for good has points that were not tried."""
        size = space.size()
        self.left = self.left or size is None or sum(space.holds(trial.point) for trial in study.trials) < size

    def told(self, study: Study) -> tuple[str, str]:
        """Returns why the search stopped, and how it can be gone on with; the latter is empty where every point was tried."""
        size, tried = self.search.space.size(), len(study.trials)
        if size is not None and tried >= size:
            return ("the only point was tried" if size == 1 else "every point was tried"), ""
        if self.reason:
            return self.reason, self.further
        if self.left:
            return f"{tried} points were tried", "the same command with more --samples goes on from here"
        together = "pass-by-pass varies one step at a time; --order joint goes on with the other combinations"
        return "every step was varied on the best of the others", together


def _points(search: Search, found: Found, stop: _Stop) -> Iterator[dict[str, Any]]:
    """Yields points; `found.study` has the trial of a point before the next is asked for."""
    whole = search.space
    best: dict[str, Any] = {}
    by_step = search.strategy.execution_order == "pass-by-pass" and whole.steps
    stages: Sequence[str | None] = whole.steps if by_step else (None,)
    for at, step in enumerate(stages):
        space = whole if step is None else whole.of_step(step, best)
        allowed = _allowed(search, at, len(stages))
        while not stop.now(found.study, allowed):
            point = next_point(space, found.study.trials, found.study.tried(), search.strategy, search.aims)
            if point is None:
                break
            yield point
        stop.after(space, found.study)
        inside = [trial for trial in ranked(found.study.trials, search.aims) if space.holds(trial.point)]
        if inside:
            best = dict(inside[0].point)


def _allowed(search: Search, stage: int, stages: int) -> int:
    """Returns how many trials there may be when a stage ends: an even share for each, so that a resumed search has the same."""
    return -(-search.samples * (stage + 1) // stages)


def _try(search: Search, study: Study, point: dict[str, Any], listen: Listen) -> Trial:
    number, started = len(study.trials), time.perf_counter()
    output = search.folder / "trials" / str(number)
    listen(Event("said", text=f"point {number + 1}: {told(point, search.request.loaded.axes)}"))
    failed = study.failed_steps()
    try:
        request = search.at(point, output)
        plan, figures = measured(request, search.way, failed, listen)
    except InvalidRecipe as error:
        return Trial(number, point, time.perf_counter() - started, reason=_why(error), rule=error.problems[0].rule)
    except StepFailed as failure:
        reason, rule = _why(failure.error), failure.error.problems[0].rule
        if failure.step is not None and failure.step in failed:
            first = failed[failure.step]
            reason, rule = f"as in point {first.number + 1}: {first.reason}", first.rule or rule
        return Trial(number, point, time.perf_counter() - started, reason=reason, rule=rule, failed_step=failure.step)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    fingerprint = plan.steps[-1].fingerprint
    return Trial(number, point, time.perf_counter() - started, figures, fingerprint=fingerprint)


def _why(error: Any) -> str:
    return "; ".join(problem.cause for problem in error.problems)


def check_space(search: Search) -> None:
    """Refuses a search that has nothing to vary.

    Raises:
        InvalidRecipe: there is no axis; one of a single value is one, and makes a search of a single point.
    """
    if not search.space.varied:
        raise InvalidRecipe(
            Problem(
                "no-space",
                f"{search.request.name}: nothing varies, so there is nothing to search",
                remedy="give an option several values in the configuration, or --space passes.STEP.OPTION=V1,V2",
            )
        )
