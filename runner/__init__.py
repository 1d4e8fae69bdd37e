"""A catalogue of model-optimisation recipes, and the runner that executes and measures them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.api import (
        Benchmark,
        FineTuned,
        Optimized,
        Recipe,
        RunResult,
        benchmark,
        finetune,
        load_recipe,
        optimize,
        run,
    )

__version__ = "0.1.0"
__all__ = [
    "Benchmark",
    "FineTuned",
    "Optimized",
    "Recipe",
    "RunResult",
    "benchmark",
    "finetune",
    "load_recipe",
    "optimize",
    "run",
]


def __getattr__(name: str) -> Any:
    """The names of `runner.api` are imported when they are asked for: the command line needs none of them."""
    if name in __all__:
        from runner import api

        return getattr(api, name)
    raise AttributeError(f"module 'runner' has no attribute '{name}'")
