"""Names of the sub-types of metrics: of latency, and of accuracy in Olive's and the metric libraries' spellings."""

from __future__ import annotations

from collections.abc import Mapping

SIZE = "bytes"
# Sub-type of latency -> quantile; None where it is not one.
LATENCY_STATISTICS: dict[str, float | None] = {
    "avg": None,
    "min": 0.0,
    "max": 1.0,
    "p50": 0.50,
    "p75": 0.75,
    "p90": 0.90,
    "p95": 0.95,
    "p99": 0.99,
    "p999": 0.999,
}
# Computed here, without a library: averages over classes are macro, of class 1 alone where there are only 0 and 1.
OWN = ("accuracy_score", "accuracy", "f1_score", "f1", "precision", "recall", "auroc")
# Olive's sub-type -> class of torchmetrics.
TORCH: Mapping[str, str] = {
    "accuracy_score": "Accuracy",
    "f1_score": "F1Score",
    "precision": "Precision",
    "recall": "Recall",
    "auroc": "AUROC",
    "perplexity": "text.Perplexity",
    "wer": "text.WordErrorRate",
}
# Metric of the evaluate package -> function of scikit-learn that its script consists of.
HUGGINGFACE: Mapping[str, str] = {
    "accuracy": "accuracy_score",
    "exact_match": "accuracy_score",
    "f1": "f1_score",
    "precision": "precision_score",
    "recall": "recall_score",
    "matthews_correlation": "matthews_corrcoef",
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
}
LOWER_IS_BETTER = frozenset({"perplexity", "wer", "cer", "mse", "mae", "ter"})
