"""Accuracy, precision, recall, F1 and area under the curve of a model's first choices, over labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, RunFailed
from runner.evaluation.metric import Metric

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def predictions(outputs: dict[str, Array], post_process: Callable[[Any], Any] | None) -> tuple[Array, Array | None]:
    """Returns (chosen classes [n, ...], scores [n, ..., classes] or None) of one batch.

    Args:
        outputs: the model's outputs by name, in its order.
        post_process: the recipe's own function. It gets the only output as an array, or all of them by name, and returns
            classes, or scores that the greatest is taken of.
    """
    import numpy as np

    first = next(iter(outputs.values()))
    if post_process is None:
        return first.argmax(axis=-1), first
    given: Any = first if len(outputs) == 1 else outputs
    try:
        processed = post_process(given)
    except Exception as error:
        raise RunFailed("script-failed", f"the recipe's post-processing raised {type(error).__name__}: {error}") from error
    array: Array = np.asarray(processed.detach().cpu() if hasattr(processed, "detach") else processed)
    if array.dtype.kind == "f" and array.ndim > 1:
        return array.argmax(axis=-1), array
    return array, None


def collect(
    batches: Iterable[tuple[dict[str, Array], Any]],
    answer: Callable[[dict[str, Array]], dict[str, Array]],
    post_process: Callable[[Any], Any] | None,
) -> tuple[Array, Array, Array | None]:
    """Runs a model over labelled batches.

    Args:
        batches: (inputs, labels) pairs.
        answer: the model: from inputs to outputs by name.
        post_process: see `predictions`.

    Returns:
        Labels [n], chosen classes [n], and scores [n, classes] where the model gives them. Positions with a negative
        label (padding, by the field's habit) are left out.

    Raises:
        DataUnavailable: there is no data, it has no labels, or labels and choices differ in shape.
    """
    import numpy as np

    labels, chosen, scores = [], [], []
    for inputs, truth in batches:
        if truth is None:
            raise DataUnavailable("accuracy needs labels, and the data has none", "name the data's label column or file")
        choice, score = predictions(answer(inputs), post_process)
        truth = np.asarray(truth).reshape(choice.shape) if np.size(truth) == choice.size else np.asarray(truth)
        truth, choice, score = _without_padding(truth, choice, score)
        if truth.shape != choice.shape:
            raise DataUnavailable(
                f"labels have the shape {list(truth.shape)}, and the model's choices {list(choice.shape)}",
                "register a post_process component that makes choices of the model's output",
            )
        counted = truth >= 0 if truth.dtype.kind in "if" else np.ones(truth.shape, bool)
        labels.append(truth[counted])
        chosen.append(choice[counted])
        scores.append(score[counted] if score is not None else None)
    if not labels:
        raise DataUnavailable("accuracy needs data, and there are no batches")
    known = [score for score in scores if score is not None]
    return np.concatenate(labels), np.concatenate(chosen), np.concatenate(known) if len(known) == len(scores) else None


def _without_padding(truth: Array, choice: Array, score: Array | None) -> tuple[Array, Array, Array | None]:
    """Cuts what a model says behind the last label of a padded batch of token labels."""
    if truth.ndim == 2 and choice.ndim == 2 and len(truth) == len(choice) and truth.shape[1] < choice.shape[1]:
        length = truth.shape[1]
        return truth, choice[:, :length], score[:, :length] if score is not None else None
    return truth, choice, score


def _accuracy(labels: Array, chosen: Array, _: Array | None) -> float:
    return float((labels == chosen).mean())


def _per_class(labels: Array, chosen: Array) -> tuple[Array, Array, Array]:
    """Returns hits, choices and labels of every class that occurs; of class 1 alone where there are only 0 and 1."""
    import numpy as np

    classes = np.union1d(labels, chosen)
    if set(classes.tolist()) <= {0, 1}:
        classes = np.asarray([1])
    hits = np.asarray([((labels == one) & (chosen == one)).sum() for one in classes])
    picked = np.asarray([(chosen == one).sum() for one in classes])
    there = np.asarray([(labels == one).sum() for one in classes])
    return hits, picked, there


def _precision(labels: Array, chosen: Array, _: Array | None) -> float:
    import numpy as np

    hits, picked, _there = _per_class(labels, chosen)
    return float((hits / np.maximum(picked, 1)).mean())


def _recall(labels: Array, chosen: Array, _: Array | None) -> float:
    import numpy as np

    hits, _picked, there = _per_class(labels, chosen)
    return float((hits / np.maximum(there, 1)).mean())


def _f1(labels: Array, chosen: Array, _: Array | None) -> float:
    import numpy as np

    hits, picked, there = _per_class(labels, chosen)
    return float((2 * hits / np.maximum(picked + there, 1)).mean())


def _auroc(labels: Array, _: Array, scores: Array | None) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney); for more than two classes the mean of one against the rest."""
    import numpy as np

    if scores is None:
        raise DataUnavailable("auroc needs scores, and the post-processing gives classes", "return the scores instead")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataUnavailable("auroc needs labels of at least two classes")
    if scores.shape[-1] == 2:
        return _area(labels == 1, scores[:, 1] - scores[:, 0])
    return float(np.mean([_area(labels == one, scores[:, int(one)]) for one in classes]))


def _area(positive: Array, score: Array) -> float:
    import numpy as np

    values, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # ties share the mean of their ranks, counted from 1
    ranks = middle[places]
    hits, misses = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses)) if len(values) else 0.0


# Sub-type, in Olive's and the two metric libraries' spellings -> how it is computed. Averages over classes are macro.
ACCURACY_STATISTICS: dict[str, Callable[[Any, Any, Any], float]] = {
    "accuracy_score": _accuracy,
    "accuracy": _accuracy,
    "f1_score": _f1,
    "f1": _f1,
    "precision": _precision,
    "recall": _recall,
    "auroc": _auroc,
}


def accuracy(name: str, labels: Array, chosen: Array, scores: Array | None) -> Metric:
    """Returns the metric called `name` in `ACCURACY_STATISTICS`, 0 to 1."""
    value = ACCURACY_STATISTICS[name](labels, chosen, scores)
    return Metric(name, value, "", True, note=f"{len(labels)} labels")
