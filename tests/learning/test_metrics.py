from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.learning.metrics import binary_metrics, expected_metrics, value_metrics

Rows = list[tuple[float, float, int]]  # score, label, integer weight

scores = st.sampled_from([0.01, 0.2, 0.25, 0.5, 0.77, 0.9])
weights = st.integers(1, 3)
soft = st.lists(st.tuples(scores, st.sampled_from([0.0, 0.1, 0.35, 0.5, 1.0]), weights), min_size=1, max_size=30)
hard = st.lists(st.tuples(scores, st.sampled_from([0.0, 1.0]), weights), min_size=1, max_size=30)
amounts = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.5, 40.0]), st.sampled_from([0.0, 3.0, 10.0]), weights), min_size=1
)


def columns(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, y, w = (np.array(c, dtype=np.float64) for c in zip(*rows, strict=True))
    return p, y, w


def oracle_pr_auc(rows: Rows) -> float | None:
    """Average precision as its definition says: at each distinct threshold, recall gained times precision."""
    total = sum(w * y for _, y, w in rows)
    if total == 0:
        return None
    area = 0.0
    for threshold in sorted({s for s, _, _ in rows}, reverse=True):
        held = [(y, w) for s, y, w in rows if s >= threshold]
        gained = sum(w * y for s, y, w in rows if s == threshold)
        area += gained / total * sum(w * y for y, w in held) / sum(w for _, w in held)
    return area


def oracle_roc_auc(rows: Rows) -> float | None:
    """Every pair: does the one drawn as positive score above the one drawn as negative."""
    wins = pairs = 0.0
    for s, y, w in rows:
        for t, z, v in rows:
            weight = w * y * v * (1 - z)
            pairs += weight
            wins += weight * (1.0 if s > t else 0.5 if s == t else 0.0)
    return wins / pairs if pairs else None


def oracle_share(rows: Rows, low: float, high: float, of: int) -> float:
    """What lies between two shares of the weight, highest scores first, ties broken at random in expectation."""
    total, passed, found = sum(w for _, _, w in rows), 0.0, 0.0
    for score in sorted({s for s, _, _ in rows}, reverse=True):
        group = [r for r in rows if r[0] == score]
        mass = sum(w for _, _, w in group)
        inside = max(0.0, min(passed + mass, high * total) - max(passed, low * total))
        found += inside / mass * sum(r[2] * (r[of] if of < 2 else 1.0) for r in group)
        passed += mass
    return found


def same(found: float | None, expected: float | None) -> bool:
    return found is expected if expected is None or found is None else math.isclose(found, expected, abs_tol=1e-9)


@settings(max_examples=80, deadline=None)
@given(soft)
def test_expected_metrics_are_the_definitions(rows: Rows) -> None:
    p, q, w = columns(rows)
    found = expected_metrics(p, q, w)
    assert same(found["expected_pr_auc"], oracle_pr_auc(rows))
    assert same(found["expected_roc_auc"], oracle_roc_auc(rows))
    losses = [-v * (y * math.log(s) + (1 - y) * math.log(1 - s)) for s, y, v in rows]
    assert same(found["expected_log_loss"], sum(losses) / sum(w))


@settings(max_examples=80, deadline=None)
@given(hard)
def test_binary_metrics_are_the_definitions(rows: Rows) -> None:
    p, y, w = columns(rows)
    found = binary_metrics(p, y, w, budgets=[0.05, 0.5])
    total, positives = sum(w), sum(w * y)
    both = 0 < positives < total
    assert same(found["pr_auc"], oracle_pr_auc(rows) if both else None)
    assert same(found["roc_auc"], oracle_roc_auc(rows) if both else None)
    assert found["positives"] == int((y > 0).sum())
    assert same(found["base_rate"], positives / total)
    assert same(found["expected_over_observed"], sum(w * p) / positives if positives else None)
    if both:
        r = positives / total
        loss = sum(-v * math.log(s if z else 1 - s) for s, z, v in rows) / total
        assert same(found["normalized_entropy"], loss / (-r * math.log(r) - (1 - r) * math.log(1 - r)))
    for budget in found["budgets"]:
        caught = oracle_share(rows, 0, budget["budget"], 1)
        assert same(budget["tpr"], caught / positives if positives else None)
        assert same(budget["fnr"], 1 - caught / positives if positives else None)
    for i, decile in enumerate(found["deciles"]):
        mass = oracle_share(rows, i / 10, (i + 1) / 10, 2)
        assert same(decile["observed"], oracle_share(rows, i / 10, (i + 1) / 10, 1) / mass)
        assert same(decile["expected"], oracle_share(rows, i / 10, (i + 1) / 10, 0) / mass)
    json.dumps(found, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(hard)
def test_an_integer_weight_is_that_many_rows(rows: Rows) -> None:
    p, y, w = columns(rows)
    often = w.astype(int)
    weighted = binary_metrics(p, y, w, budgets=[0.1])
    repeated = binary_metrics(np.repeat(p, often), np.repeat(y, often), np.ones(often.sum()), budgets=[0.1])
    assert_close(weighted, repeated, apart=("rows", "positives"))


@settings(max_examples=50, deadline=None)
@given(amounts)
def test_value_metrics_are_the_definitions(rows: Rows) -> None:
    p, y, w = columns(rows)
    found = value_metrics(p, y, w)

    def area(order: Rows) -> float:
        total, cut = sum(v * z for _, z, v in order), 2000
        captured = [oracle_share(order, 0, i / cut, 1) / total for i in range(cut + 1)]
        return 2 * sum((a + b) / 2 / cut for a, b in itertools.pairwise(captured)) - 1

    if sum(y) == 0:
        assert found["normalized_gini"] is None
    elif len(rows) <= 6:
        perfect = area([(z, z, v) for _, z, v in rows])
        if perfect > 0.02:
            assert abs(found["normalized_gini"] - area(rows) / perfect) < 0.02
    assert same(found["mean_absolute_error"], sum(w * abs(p - y)) / sum(w))
    assert same(found["expected_over_observed"], sum(w * p) / sum(w * y) if sum(y) else None)
    errors = [d["mean_absolute_error"] * d["weight"] for d in found["deciles"]]
    assert same(sum(errors), float(sum(w * abs(p - y))))
    json.dumps(found, allow_nan=False)


def test_the_order_of_rows_and_ties_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.choice([0.1, 0.2, 0.3], 500), (rng.random(500) < 0.2).astype(float)
    order = rng.permutation(500)
    one = binary_metrics(p, y, np.ones(500), budgets=[0.01, 0.05])
    assert_close(one, binary_metrics(p[order], y[order], np.ones(500), budgets=[0.01, 0.05]))
    constant = binary_metrics(np.full(500, 0.2), y, np.ones(500), budgets=[0.05])
    assert constant["budgets"][0]["tpr"] == pytest.approx(0.05)
    assert constant["roc_auc"] == 0.5


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    p, y = np.array([1.0, 2, 2, 5]), np.array([0.0, 0, 7, 9])
    a, b = np.array([1, 2.5, 2.5, 4]), np.array([1.5, 1.5, 3, 4])
    expected = ((a - 2.5) * (b - 2.5)).sum() / np.sqrt(((a - 2.5) ** 2).sum() * ((b - 2.5) ** 2).sum())
    assert value_metrics(p, y, np.ones(4))["spearman"] == pytest.approx(expected)


def test_nothing_to_measure_is_null() -> None:
    none = np.zeros(0)
    for found in (binary_metrics(none, none, none, [0.1], none), value_metrics(none, none, none)):
        json.dumps(found, allow_nan=False)
        assert found["rows"] == 0
        assert found["base_rate"] is None


def assert_close(found: Any, expected: Any, path: str = "", apart: tuple[str, ...] = ()) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            if key not in apart:
                assert_close(found[key], expected[key], f"{path}.{key}", apart)
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{path}[{i}]", apart)
    else:
        assert found == pytest.approx(expected, abs=1e-9), path
