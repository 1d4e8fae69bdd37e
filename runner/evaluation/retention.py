"""How much of the source model's answers the optimised model gives: cosine of embeddings, agreement of first choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.evaluation.metric import Metric

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def pooled(hidden: Array, mask: Array, first_token: bool = False) -> Array:
    """Returns normalised sentence embeddings, float32 [batch, width].

    Args:
        hidden: last hidden state, [batch, tokens, width].
        mask: attention mask, [batch, tokens]; 0 where there is padding.
        first_token: take the first token's state instead of the mean over the tokens.
    """
    import numpy as np

    if first_token:
        return unit(hidden[:, 0])
    weights: Array = mask[..., None].astype(np.float32)
    return unit((hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))


def unit(rows: Array) -> Array:
    """Returns the rows scaled to length 1, float32 [n, width]."""
    import numpy as np

    rows = rows.astype(np.float32)
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return scaled


def cosine(reference: Array, candidate: Array) -> tuple[Metric, Metric]:
    """Returns the mean and the least cosine between two sets of vectors, row by row.

    Args:
        reference: the source model's vectors, [n, width].
        candidate: the optimised model's vectors of the same inputs, [n, width].
    """
    products = (unit(reference) * unit(candidate)).sum(axis=-1)
    samples = tuple(max(-1.0, min(1.0, float(value))) for value in products)  # fp32 rounds a little past 1
    return (
        Metric("cosine", sum(samples) / len(samples), "", True, samples, f"mean over {len(samples)} inputs"),
        Metric("cosine_min", min(samples), "", True, samples, f"worst of {len(samples)} inputs"),
    )


def agreement(reference: Sequence[int] | Array, candidate: Sequence[int] | Array) -> Metric:
    """Returns the share of inputs on which both models choose the same class (or word) first, 0 to 1."""
    same = tuple(float(int(one) == int(other)) for one, other in zip(reference, candidate, strict=True))
    return Metric("agreement", sum(same) / len(same), "", True, same, f"same first choice on {len(same)} inputs")


def correlations(scores: Sequence[float], baseline: Array, optimised: Array) -> list[tuple[Metric, Metric]]:
    """Returns Spearman's and Pearson's correlation with the scores that people gave, of (optimised, baseline).

    Args:
        scores: how near people find the sentences of each pair.
        baseline: the source model's similarities of the pairs, [n].
        optimised: the optimised model's similarities, [n].
    """
    import numpy as np

    truth = np.asarray(scores, np.float64)
    found = []
    for name, form in (("spearman", ranks), ("pearson", np.asarray)):
        same = _correlation(form(baseline), form(optimised))
        notes = f"on {len(scores)} pairs; {same:.4f} with the baseline's similarities", f"on {len(scores)} pairs"
        ours, theirs = (
            Metric(name, _correlation(form(truth), form(side)), "", True, (), note)
            for side, note in zip((optimised, baseline), notes, strict=True)
        )
        found.append((ours, theirs))
    return found


def ranks(values: Array) -> Array:
    """Returns the ranks of the values, float64 [n]; equal values share the mean of theirs."""
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    shared: Array = (last - (counts - 1) / 2)[place]
    return shared


def _correlation(one: Array, other: Array) -> float:
    """Returns the correlation; 0 where one side says the same of everything."""
    import numpy as np

    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0
