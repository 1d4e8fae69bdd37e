"""What a metric must reach, absolutely or against the source model."""

from __future__ import annotations

from runner.evaluation.metric import Metric
from runner.recipe.config import Goal


def needs_baseline(goal: Goal) -> bool:
    """Returns whether the goal is relative to the source model's figure."""
    return goal.type != "threshold"


def limit(goal: Goal, higher_is_better: bool, baseline: float | None) -> float:
    """Returns the figure that a metric must reach: at least it where higher is better, at most it otherwise.

    Args:
        goal: the goal, in Olive's words; percentages are of the baseline, so 20 is a fifth.
        higher_is_better: the metric's direction.
        baseline: the source model's figure; only a threshold does without.

    Raises:
        ValueError: the goal is relative, and there is no baseline.
    """
    if goal.type == "threshold":
        return goal.value
    if baseline is None:
        raise ValueError(f"a goal of type {goal.type} needs the source model's figure")
    step = abs(baseline) * goal.value / 100 if goal.type.startswith("percent-") else goal.value
    better = step if goal.type.endswith("min-improvement") else -step
    return baseline + better if higher_is_better else baseline - better


def missed(goal: Goal, metric: Metric, baseline: Metric | None) -> str | None:
    """Returns a sentence that says how the metric misses the goal, or None where it reaches it."""
    bar = limit(goal, metric.higher_is_better, baseline.value if baseline else None)
    if metric.value >= bar if metric.higher_is_better else metric.value <= bar:
        return None
    unit = f" {metric.unit}" if metric.unit else ""
    asked = f"{'at least' if metric.higher_is_better else 'at most'} {bar:.4g}{unit}"
    told = f"; the source model has {baseline.value:.4g}{unit}" if baseline else ""
    return f"{metric.name} is {metric.value:.4g}{unit}, and the goal {goal.type} {goal.value:g} asks for {asked}{told}"
