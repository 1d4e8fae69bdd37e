"""Correlation with what people say, against numpy's and hand-made ranks."""

from __future__ import annotations

import numpy as np
import pytest

from runner.evaluation.retention import correlations, ranks


def test_equal_values_share_a_rank() -> None:
    assert ranks(np.asarray([0.3, 0.1, 0.3, 0.9])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_correlations_of_both_sides() -> None:
    truth, theirs, ours = [0.0, 1.0, 2.0, 5.0], np.asarray([0.1, 0.2, 0.3, 0.9]), np.asarray([0.2, 0.1, 0.3, 0.9])
    (spearman, of_theirs), (pearson, _) = correlations(truth, theirs, ours)
    assert of_theirs.value == pytest.approx(1)
    assert spearman.value == pytest.approx(0.8)
    assert "0.8000 with the baseline's" in spearman.note
    assert pearson.value == pytest.approx(np.corrcoef(truth, ours)[0, 1])
    (nothing, _), _ = correlations(truth, theirs, np.ones(4))
    assert nothing.value == 0.0
