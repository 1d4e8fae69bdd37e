"""`--locked`: a run takes the source model that its recipe's lock names, and no other."""

from __future__ import annotations

from dataclasses import replace

from runner.engine.plan import Plan
from runner.engine.request import Request
from runner.errors import UsageError
from runner.models.digest import DigestMemo
from runner.models.lock import Lock, hold_against, pinned, read_lock
from runner.recipe.info import HubSource


def locked_request(request: Request) -> tuple[Request, Lock]:
    """Returns the request with the lock's source, at the lock's revision, in place of the recipe's sources; and the lock.

    Raises:
        UsageError: nothing of a recipe is run, or a tiny twin in its model's place.
        InvalidRecipe: the recipe has no lock, or one of another model.
    """
    if request.info is None:
        raise UsageError("bad-usage", "--locked needs a recipe: a config file alone has no lock", "name a recipe")
    if request.smoke:
        raise UsageError("bad-usage", "--smoke runs a tiny model, which no lock is about", "give --smoke or --locked")
    folder = request.loaded.folder
    lock = read_lock(folder, request.info.name)
    model = request.info.model
    sources = pinned(lock, model.sources or [HubSource(hub=model.id)], folder)
    info = request.info.model_copy(update={"model": model.model_copy(update={"sources": sources})})
    return replace(request, info=info), lock


def check_source(plan: Plan, lock: Lock) -> None:
    """Holds the source model of a plan against the lock; one that has not been fetched is not looked at.

    Raises:
        InvalidRecipe: a file or the revision differs; names each.
    """
    if plan.source.handle is None:
        return
    with DigestMemo(plan.places.digests) as memo:
        hold_against(lock, plan.source.handle.folder, memo, plan.request.loaded.folder)
