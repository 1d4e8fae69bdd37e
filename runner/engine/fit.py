"""Whether what a run needs is there: told before it starts, not when the disk is full or the worker is killed."""

from __future__ import annotations

from collections.abc import Iterator

from runner.engine.capacity import free_disk, memory, same_disk
from runner.engine.estimate import Needs
from runner.engine.plan import Plan
from runner.errors import DoesNotFit, Problem
from runner.recipe.quantities import short_size

_BIGGER_STORE = "run 'recipe cache gc', or set RECIPE_CACHE to a bigger disk"


def check_fit(plan: Plan, needs: Needs, max_memory: int | None = None) -> tuple[str, ...]:
    """Returns what people should know of a run that fits this machine as far as can be told.

    Args:
        plan: the run.
        needs: what it needs.
        max_memory: bytes that the worker is allowed, where somebody said so.

    Raises:
        DoesNotFit: memory or disk does not suffice; says which step, how much, and how much there is.
    """
    problems = [*_memory_problems(needs, max_memory), *_disk_problems(plan, needs)]
    if problems:
        raise DoesNotFit(*problems)
    notes = [f"the figures are rough: {needs.roughly}"] if needs.roughly else []
    free = memory().free
    if needs.memory > free:
        notes.append(
            f"the run needs {short_size(needs.memory)} of memory and {short_size(free)} are free now: close what is not needed"
        )
    return tuple(notes)


def checks_left_out(needs: Needs, max_memory: int | None = None) -> dict[str, str]:
    """Returns the steps whose result cannot be checked against the source in the memory that there is, and why."""
    limit, limited_by, _ = _limit(max_memory)
    return {
        step.name: f"it takes about {short_size(step.check)} of memory, more than {limited_by}, {short_size(limit)}"
        for step in needs.steps
        if step.check > limit
    }


def _limit(max_memory: int | None) -> tuple[int, str, str]:
    """Returns the bytes that a run may hold, what says so, and what a person can do about it."""
    there = memory()
    if max_memory is not None and max_memory < there.limit:
        return max_memory, "--max-memory", "raise --max-memory"
    return there.limit, there.limited_by, "take a smaller model or a bigger machine"


def _memory_problems(needs: Needs, max_memory: int | None) -> Iterator[Problem]:
    limit, limited_by, remedy = _limit(max_memory)
    step = max((step for step in needs.steps if not step.cached), key=lambda step: step.memory, default=None)
    if step is not None and step.memory > limit:
        yield Problem(
            "too-little-memory",
            f"step '{step.name}' ({step.pass_name}) needs about {short_size(step.memory)} of memory, "
            f"more than {limited_by}, {short_size(limit)}",
            remedy=f"{remedy}; 'recipe run --force' runs anyway",
        )


def _disk_problems(plan: Plan, needs: Needs) -> Iterator[Problem]:
    """Compares each disk with everything that goes to it."""
    wanted = [(plan.places.store, needs.disk, "finished steps"), (plan.places.models, needs.download, "the download")]
    if not same_disk(plan.places.store, plan.output):
        wanted.append((plan.output, needs.output, "the model"))
    while wanted:
        folder, *_ = wanted[0]
        together = [one for one in wanted if same_disk(folder, one[0])]
        wanted = [one for one in wanted if one not in together]
        total, free = sum(size for _, size, _ in together), free_disk(folder)
        if total > free:
            elsewhere = "choose another --output-dir" if folder == plan.output else _BIGGER_STORE
            parts = " and ".join(f"{short_size(size)} for {what} below {place}" for place, size, what in together if size)
            yield Problem(
                "too-little-disk",
                f"the run writes about {parts}; {short_size(free)} are free there",
                remedy=f"{elsewhere}; 'recipe run --force' runs anyway",
            )
