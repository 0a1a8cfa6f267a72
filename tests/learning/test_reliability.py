from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.learning.reliability import reliability


def calibrated(seed: int, subscribers: int = 400, sends: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact probabilities of labels that are alike within a subscriber: half of the sends repeat the first's draw."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(subscribers), sends)
    p = (rng.beta(1, 6, subscribers))[who]
    shared, own = rng.random(subscribers)[who], rng.random(len(who))
    return p, (np.where(rng.random(len(who)) < 0.5, shared, own) < p).astype(float), who


def test_bins_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    p, weight = rng.random(1000).round(2), rng.integers(1, 4, 1000).astype(float)
    y = (rng.random(1000) < p).astype(float)
    found = reliability(p, y, weight, bins=7)
    passed, bins, total = 0.0, {}, weight.sum()
    for score in sorted(set(p)):
        rows = p == score
        middle = passed + weight[rows].sum() / 2
        bins.setdefault(int(middle / total * 7), []).append(rows)
        passed += weight[rows].sum()
    ece = 0.0
    assert len(bins) == len(found["reliability"]) == 7
    for (_, parts), row in zip(sorted(bins.items()), found["reliability"], strict=True):
        rows = np.any(parts, axis=0)
        w = weight[rows]
        assert row["predicted"] == pytest.approx(np.average(p[rows], weights=w))
        assert row["observed"] == pytest.approx(np.average(y[rows], weights=w))
        assert row["weight"] == w.sum()
        assert row["low"] < row["observed"] < row["high"]
        ece += w.sum() / total * abs(row["predicted"] - row["observed"])
    assert found["ece"] == pytest.approx(ece)
    order = rng.permutation(1000)
    again = reliability(p[order], y[order], weight[order], bins=7)
    assert again["ece"] == pytest.approx(found["ece"])
    assert again["ece_noise"] == pytest.approx(found["ece_noise"])


def test_exact_probabilities_have_the_error_of_noise_alone_and_lie_in_the_band() -> None:
    errors, floors, inside, total, alone = [], [], 0, 0, []
    for seed in range(150):
        p, y, who = calibrated(seed, subscribers=1000)
        found = reliability(p, y, np.ones(len(p)), who, bins=10)
        errors.append(found["ece"])
        floors.append(found["ece_noise"])
        alone.append(reliability(p, y, np.ones(len(p)), bins=10)["ece_noise"])
        inside += sum(b["low"] <= b["predicted"] <= b["high"] for b in found["reliability"])
        total += len(found["reliability"])
    assert np.mean(floors) == pytest.approx(np.mean(errors), rel=0.05)
    assert np.mean(alone) < 0.85 * np.mean(errors)  # rows that are taken for independent promise too much
    assert inside / total == pytest.approx(0.9, abs=0.03)


def test_a_wrong_probability_leaves_the_band_and_the_noise() -> None:
    p, y, who = calibrated(0, subscribers=4000)
    found = reliability(np.minimum(2 * p, 1), y, np.ones(len(p)), who)
    assert found["ece"] > 8 * found["ece_noise"]
    assert sum(b["low"] <= b["predicted"] <= b["high"] for b in found["reliability"][5:]) == 0


def test_a_constant_score_is_one_point_and_nothing_is_nothing() -> None:
    y = np.array([0.0, 1, 0, 0])
    (point,) = reliability(np.full(4, 0.2), y, np.ones(4))["reliability"]
    assert (point["predicted"], point["observed"]) == (pytest.approx(0.2), pytest.approx(0.25))
    assert reliability(y[:0], y[:0], y[:0]) == {"reliability": [], "ece": None, "ece_noise": None}
    none = reliability(np.full(9, 0.1), np.zeros(9), np.ones(9))["reliability"][0]
    assert none["low"] == 0
    assert none["high"] == pytest.approx(1.6448536**2 / (9 + 1.6448536**2))  # Wilson's, of nothing in nine
    assert math.isfinite(none["observed"])
