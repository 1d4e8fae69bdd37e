"""Components that a recipe's user_script registers, under the decorators that Olive gave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from runner.errors import InvalidRecipe, Problem, did_you_mean

Stage = Literal["dataset", "pre_process", "post_process", "dataloader"]
Component = Callable[..., Any]
_Registered = TypeVar("_Registered", bound=Component)


class ComponentRegistry:
    """What one script registered, by stage and name. Names match in any case."""

    def __init__(self) -> None:
        self._components: dict[Stage, dict[str, Component]] = {}

    def register_dataset(self, name: str | None = None) -> Callable[[_Registered], _Registered]:
        """Decorates ``f(**params) -> dataset``; the name is the function's own by default."""
        return self._register("dataset", name)

    def register_pre_process(self, name: str | None = None) -> Callable[[_Registered], _Registered]:
        """Decorates ``f(dataset, **params) -> dataset`` of (inputs, label) pairs."""
        return self._register("pre_process", name)

    def register_post_process(self, name: str | None = None) -> Callable[[_Registered], _Registered]:
        """Decorates ``f(model_output, **params) -> predictions``."""
        return self._register("post_process", name)

    def register_dataloader(self, name: str | None = None) -> Callable[[_Registered], _Registered]:
        """Decorates ``f(dataset, **params) -> iterable`` of (inputs, labels) batches."""
        return self._register("dataloader", name)

    def _register(self, stage: Stage, name: str | None) -> Callable[[_Registered], _Registered]:
        def decorate(component: _Registered) -> _Registered:
            self._components.setdefault(stage, {})[(name or component.__name__).lower()] = component
            return component

        return decorate

    def find(self, stage: Stage, name: str) -> Component | None:
        """Returns the component of that stage and name, or None."""
        return self._components.get(stage, {}).get(name.lower())

    def names(self, stage: Stage) -> list[str]:
        """Returns the registered names of a stage."""
        return sorted(self._components.get(stage, {}))


def unknown_component(stage: Stage, name: str, known: list[str]) -> InvalidRecipe:
    """Returns the error that names the component which neither a script nor the runner has."""
    return InvalidRecipe(
        Problem("unknown-component", f"there is no {stage} component '{name}'", remedy=did_you_mean(name, known))
    )
