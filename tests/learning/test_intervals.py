from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from pipeline.learning.intervals import AMOUNTS, BINARY, Amounts, Probabilities, Resamples, difference, intervals
from pipeline.learning.metrics import binary_metrics, value_metrics


def log(seed: int, subscribers: int, sends: int = 6, base: float = -3.0) -> tuple[np.ndarray, ...]:
    """A score that knows a part, labels, the same with another score, and subscribers whose sends have a trait."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(subscribers), sends)
    trait, x = rng.normal(0, 1.5, subscribers)[who], rng.normal(0, 1, len(who))
    y = (rng.random(len(who)) < _sigmoid(base + trait + x)).astype(np.float64)
    return _sigmoid(base + 0.3 + 0.8 * x + 0.4 * trait), y, who, _sigmoid(base + 0.3 + 0.8 * x)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def test_a_replicate_measures_what_scikit_learn_does_under_its_weights() -> None:
    score, y, who, _ = log(0, 300)
    score, weight = score.round(2), np.random.default_rng(1).integers(1, 4, len(y)).astype(float)
    draws = Resamples.of(who, seed=3, times=5)
    measured = Probabilities(score, y, weight, draws)
    for often in draws.counts():
        w = weight * often[who]
        found, rate = measured.measure(often), np.average(y, weights=w)
        assert found["roc_auc"] == pytest.approx(roc_auc_score(y, score, sample_weight=w))
        assert found["pr_auc"] == pytest.approx(average_precision_score(y, score, sample_weight=w))
        assert found["brier"] == pytest.approx(brier_score_loss(y, score, sample_weight=w))
        clipped = np.clip(score, 1e-7, 1 - 1e-7)
        assert found["log_loss"] == pytest.approx(log_loss(y, clipped, sample_weight=w))
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert found["normalized_entropy"] == pytest.approx(found["log_loss"] / entropy)
        assert found["expected_over_observed"] == pytest.approx((w @ score) / (w @ y))
        named = binary_metrics(score[w > 0], y[w > 0], w[w > 0])
        assert set(BINARY) <= set(named)
        for name in BINARY:
            assert found[name] == pytest.approx(named[name]), name


def test_a_replicate_of_amounts_is_what_the_metrics_say_of_its_rows() -> None:
    rng = np.random.default_rng(2)
    who = rng.integers(0, 100, 500)
    y = np.where(rng.random(500) < 0.3, rng.exponential(20, 500).round(), 0.0)
    score = (y * 0.3 + rng.exponential(5, 500)).round(1)
    draws = Resamples.of(who, times=3)
    for often in draws.counts():
        repeated = np.repeat(np.arange(500), often[draws.group].astype(int))
        named = value_metrics(score[repeated], y[repeated], np.ones(len(repeated)))
        found = Amounts(score, y, np.ones(500), draws).measure(often)
        assert set(found) == set(AMOUNTS)
        for name in AMOUNTS:
            assert found[name] == pytest.approx(named[name]), name


def test_replicates_count_each_subscriber_a_poisson_number_of_times() -> None:
    draws = Resamples.of(np.arange(20_000), times=20)
    counts = np.concatenate(list(draws.counts()))
    for k in range(6):
        assert np.mean(counts == k) == pytest.approx(math.exp(-1) / math.factorial(k), abs=0.003)


def test_intervals_hold_the_truth_as_often_as_they_say_and_rows_alone_would_not() -> None:
    """Against what the metrics are on a million rows: 90% within noise, where rows alone are far from it."""
    score, y, who, _ = log(99, 100_000)
    every = Resamples.of(who)
    truth = Probabilities(score, y, np.ones(len(y)), every).measure(np.ones(every.clusters))
    runs, held, alone = 120, dict.fromkeys(BINARY, 0), 0
    for seed in range(runs):
        score, y, who, _ = log(seed, 150, sends=10)
        found = intervals(Probabilities, score, y, np.ones(len(y)), Resamples.of(who, seed))
        for name, bounds in found.items():
            assert bounds is not None
            held[name] += bounds[0] <= truth[name] <= bounds[1]
        each = Resamples.of(np.arange(len(y)), seed, times=60)
        bounds = intervals(Probabilities, score, y, np.ones(len(y)), each)["expected_over_observed"]
        assert bounds is not None
        alone += bounds[0] <= truth["expected_over_observed"] <= bounds[1]
    noise = 3 * math.sqrt(0.9 * 0.1 / runs)
    for name, times in held.items():
        assert abs(times / runs - 0.9) < noise, (name, times / runs)
    assert alone / runs < 0.8


def test_a_paired_difference_holds_the_truth_and_is_narrower_than_two_intervals_apart() -> None:
    better, y, who, worse = log(99, 100_000)
    one = np.ones(len(y))
    truth = roc_auc_score(y, better) - roc_auc_score(y, worse)
    held = 0
    for seed in range(60):
        better, y, who, worse = log(seed, 150, sends=10)
        one = np.ones(len(y))
        estimate, low, high = difference(better, worse, y, one, who, "roc_auc", seed=seed)
        assert estimate == pytest.approx(roc_auc_score(y, better) - roc_auc_score(y, worse))
        held += low <= truth <= high
        if seed < 10:
            apart = [intervals(Probabilities, s, y, one, Resamples.of(who))["roc_auc"] for s in (better, worse)]
            assert high - low < math.hypot(*(np.ptp(bounds) for bounds in apart))
    assert abs(held / 60 - 0.9) < 0.12
    assert difference(better, better, y, one, who) == (0, 0, 0)


def test_the_same_seed_gives_the_same_interval_in_any_order_of_rows() -> None:
    score, y, who, other = log(5, 200)
    order = np.random.default_rng(0).permutation(len(y))
    one = np.ones(len(y))
    first = difference(score, other, y, one, who, seed=4)
    assert first == difference(score, other, y, one, who, seed=4)
    assert first != difference(score, other, y, one, who, seed=5)
    assert first == pytest.approx(difference(score[order], other[order], y[order], one, who[order], seed=4))


def test_what_is_undefined_has_no_interval() -> None:
    for n, positives in ((0, 0), (50, 0), (50, 1)):  # of one positive a third of the replicates has none
        y = (np.arange(n) < positives).astype(float)
        draws = Resamples.of(np.arange(n))
        assert set(intervals(Probabilities, y / 2 + 0.1, y, np.ones(n), draws).values()) == {None}
        assert set(intervals(Amounts, y + 1, y, np.ones(n), draws).values()) == {None}
        assert all(math.isnan(v) for v in difference(y, 1 - y, y, np.ones(n), np.arange(n)))
    perfect = intervals(Probabilities, y * 0.5 + 0.2, np.arange(50) % 2.0, np.ones(50), draws)
    assert perfect["roc_auc"] is not None
    with pytest.raises(ValueError, match="no such metric: 'f1'; there are roc_auc, pr_auc"):
        difference(y, y, y, y, y, "f1")
