"""Metrics as pure arithmetic: latency statistics, perplexity, retention, accuracy, size, goals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import DataUnavailable
from runner.evaluation.accuracy import ACCURACY_STATISTICS, accuracy, collect
from runner.evaluation.goals import limit, missed
from runner.evaluation.latency import latency, quantile, statistic, throughput, timed
from runner.evaluation.metric import Metric
from runner.evaluation.metric_names import LATENCY_STATISTICS
from runner.evaluation.perplexity import negative_log_likelihood, perplexity, token_windows
from runner.evaluation.retention import agreement, cosine, pooled
from runner.evaluation.size import size_on_disk
from runner.recipe.config import Goal

seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50)


def test_a_metric_survives_json():
    metric = Metric("latency_avg", 1.5, "ms", False, (1.0, 2.0), "two calls")
    assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric


@given(seconds, st.floats(0, 1))
def test_quantiles_are_numpys(samples, at):
    assert quantile(samples, at) == pytest.approx(np.quantile(samples, at), rel=1e-9)


@given(seconds)
def test_latency_statistics_lie_between_the_extremes(samples):
    for name in LATENCY_STATISTICS:
        assert min(samples) * (1 - 1e-12) <= statistic(samples, name) <= max(samples) * (1 + 1e-12)


def test_latency_is_in_milliseconds_and_keeps_its_samples():
    metric = latency((0.001, 0.003), "avg")
    assert metric == Metric("latency_avg", 2.0, "ms", False, (1.0, 3.0))


def test_throughput_counts_every_input_of_a_batch():
    assert throughput((0.5, 1.5), 4, "avg").value == pytest.approx(4.0)
    assert throughput((0.5, 1.5), 4, "max").value == pytest.approx(8.0)
    assert throughput((0.5, 1.5), 4, "min").value == pytest.approx(4 / 1.5)


def test_warm_up_calls_are_not_samples():
    calls = []
    assert len(timed(lambda: calls.append(1), warmup=2, repeats=3)) == 3
    assert len(calls) == 5


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    windows = [[1, 2, 3, 4], [4, 3, 2, 1]]
    losses = [negative_log_likelihood(np.zeros((4, 32), np.float32), ids) for ids in windows]
    metric = perplexity(losses, windows)
    assert metric.value == pytest.approx(32)
    assert metric.samples == pytest.approx((32, 32))


def test_loss_is_torchs_cross_entropy():
    import torch

    generator = np.random.default_rng(0)
    logits, ids = generator.normal(size=(6, 11)).astype(np.float32) * 30, [3, 1, 4, 1, 5, 9]
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(ids[1:]), reduction="sum")
    assert negative_log_likelihood(logits, ids) == pytest.approx(float(expected), rel=1e-5)


def test_windows_begin_with_the_special_tokens_and_do_not_overlap():
    assert token_windows(range(10, 20), [1], 2, 4) == [[1, 10, 11, 12], [1, 13, 14, 15]]


def test_a_text_that_is_too_short_is_told_with_its_length():
    with pytest.raises(DataUnavailable, match="has 5 tokens; 2 windows of 4 need 6"):
        token_windows(range(5), [1], 2, 4)


def test_padding_does_not_reach_an_embedding():
    hidden = np.asarray([[[3.0, 4.0], [3.0, 4.0], [900.0, -5.0]]])
    assert pooled(hidden, np.asarray([[1, 1, 0]])) == pytest.approx(np.asarray([[0.6, 0.8]]))
    assert pooled(hidden, np.asarray([[1, 1, 0]]), first_token=True) == pytest.approx(np.asarray([[0.6, 0.8]]))


def test_cosine_tells_mean_and_worst():
    mean, worst = cosine(np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.asarray([[5.0, 0.0], [1.0, 1.0]]))
    assert mean.value == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert worst.value == pytest.approx(math.sqrt(0.5))
    assert max(mean.samples) <= 1.0


def test_agreement_is_a_share():
    assert agreement([1, 2, 3, 4], [1, 2, 0, 4]).value == 0.75


LABELS = np.asarray([0, 0, 1, 1, 1, 2])
CHOSEN = np.asarray([0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy_score", 4 / 6),
        ("precision", (1 + 2 / 3 + 1 / 2) / 3),
        ("recall", (1 / 2 + 2 / 3 + 1) / 3),
        ("f1_score", (2 / 3 + 2 / 3 + 2 / 3) / 3),
    ],
)
def test_classification_metrics_are_macro_averages(name, expected):
    assert accuracy(name, LABELS, CHOSEN, None).value == pytest.approx(expected)


def test_two_classes_are_scored_by_the_positive_one():
    labels, chosen = np.asarray([1, 1, 0, 0]), np.asarray([1, 0, 0, 0])
    assert accuracy("recall", labels, chosen, None).value == 0.5
    assert accuracy("precision", labels, chosen, None).value == 1.0


def test_area_under_the_curve_counts_ties_half():
    scores = np.asarray([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])
    assert accuracy("auroc", np.asarray([0, 0, 1, 1]), np.zeros(4), scores).value == pytest.approx(0.875)


def test_every_accuracy_statistic_is_perfect_on_perfect_answers():
    scores = np.eye(3)[LABELS]
    for name in ACCURACY_STATISTICS:
        assert accuracy(name, LABELS, LABELS, scores).value == pytest.approx(1.0)


def test_padded_labels_do_not_count():
    batches = [({"x": np.zeros(2)}, np.asarray([1, -100]))]
    labels, chosen, _ = collect(batches, lambda _: {"logits": np.asarray([[0.0, 1.0], [0.0, 1.0]])}, None)
    assert labels.tolist() == chosen.tolist() == [1]


def test_data_without_labels_is_told():
    with pytest.raises(DataUnavailable, match="has none"):
        collect([({}, None)], lambda _: {"logits": np.zeros((1, 2))}, None)


def test_the_recipes_own_post_processing_decides():
    batches = [({}, np.asarray([7]))]
    _, chosen, scores = collect(batches, lambda _: {"logits": np.zeros((1, 2))}, lambda _: np.asarray([7]))
    assert chosen.tolist() == [7]
    assert scores is None


def test_size_leaves_out_what_only_describes_the_model(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"12345")
    (tmp_path / "sub" / "tokenizer.json").write_bytes(b"123")
    (tmp_path / "receipt.json").write_bytes(b"not the model")
    assert size_on_disk(tmp_path).value == 8


@pytest.mark.parametrize(
    ("kind", "value", "higher", "expected"),
    [
        ("threshold", 0.9, True, 0.9),
        ("min-improvement", 5, False, 95),
        ("min-improvement", 5, True, 105),
        ("percent-min-improvement", 20, False, 80),
        ("percent-min-improvement", 20, True, 120),
        ("max-degradation", 5, False, 105),
        ("percent-max-degradation", 5, True, 95),
    ],
)
def test_goals_mean_what_olive_means(kind, value, higher, expected):
    assert limit(Goal(type=kind, value=value), higher, 100.0) == pytest.approx(expected)


def test_a_missed_goal_says_by_how_much():
    goal = Goal(type="percent-min-improvement", value=20)
    slow, fast = Metric("latency-avg", 90, "ms", False), Metric("latency-avg", 79, "ms", False)
    source = Metric("latency-avg", 100, "ms", False)
    assert missed(goal, fast, source) is None
    text = missed(goal, slow, source)
    assert text is not None
    assert "at most 80 ms" in text
    assert "source model has 100 ms" in text
