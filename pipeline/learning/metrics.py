"""Metrics of one score against one outcome, on the host: weighted, strict (None where undefined), order-independent.

Hard labels go to scikit-learn where it has the metric. Soft labels (the true probability of a simulated log) remove
label noise: every formula then takes the probability where it would take 0 or 1. Ties count as if broken at random, in
expectation: rows of equal score are one step of every curve, so a constant score gets exactly what chance gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 in logarithms: the resolution of float32


def binary_metrics(
    p: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    budgets: Sequence[float] = (),
    truth: np.ndarray | None = None,
) -> dict[str, Any]:
    """Discrimination and calibration of a probability.

    Args:
        p: float[n], predicted probability. y: float[n], 0 or 1. weight: float[n], above 0.
        budgets: shares of the rows held back, highest scores first, at which TPR and FNR are given.
        truth: float[n], the true probability; NaN where unknown, and such rows then count for hard labels alone.
    Returns: the keys of one outcome in metrics.json. Shares, rates and ratios are plain floats.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    p, y, weight = (np.asarray(a, dtype=np.float64) for a in (p, y, weight))
    positives, total = float(weight @ y), float(weight.sum())
    rate = ratio(positives, total)
    two_classes = rate is not None and 0 < rate < 1
    curve = Curve(p, y, weight)
    tenths = deciles(curve)
    pr_auc = float(average_precision_score(y, p, sample_weight=weight)) if two_classes else None
    loss = _log_loss(p, y, weight)
    metrics: dict[str, Any] = {
        "rows": len(p),
        "positives": int((y > 0).sum()),
        "base_rate": rate,
        "pr_auc": pr_auc,
        "pr_auc_over_base_rate": ratio(pr_auc, rate),
        "roc_auc": float(roc_auc_score(y, p, sample_weight=weight)) if two_classes else None,
        "log_loss": loss,
        "normalized_entropy": ratio(loss, entropy(rate)) if rate is not None and two_classes else None,
        "brier": ratio(float(weight @ (p - y) ** 2), total),
        "expected_over_observed": ratio(float(weight @ p), positives),
        "top_decile_expected_over_observed": tenths[0]["expected_over_observed"] if tenths else None,
        "deciles": tenths,
        "budgets": [at_budget(curve, b) for b in budgets],
    }
    if truth is not None:
        sure = ~np.isnan(truth)
        metrics |= expected_metrics(p[sure], np.asarray(truth, dtype=np.float64)[sure], weight[sure])
    return metrics


def expected_metrics(p: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> dict[str, float | None]:
    """The metrics with the true probability as a soft label; p, truth and weight float64[n].

    expected_pr_auc: sum over distinct scores, descending, of the recall gained times the precision there.
    expected_roc_auc: the chance that a random positive scores above a random negative, ties counting half.
    """
    if not len(p):
        return {"expected_pr_auc": None, "expected_roc_auc": None, "expected_log_loss": None}
    curve = Curve(p, truth, weight)
    positive, negative = np.diff(curve.hits), np.diff(curve.mass - curve.hits)
    hits, misses = float(curve.hits[-1]), float(curve.mass[-1] - curve.hits[-1])
    precision = curve.hits[1:] / curve.mass[1:]
    wins = float((negative * (curve.hits[:-1] + positive / 2)).sum())
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    surprise = truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped)
    return {
        "expected_pr_auc": ratio(float(positive @ precision), hits),
        "expected_roc_auc": ratio(wins, hits * misses),
        "expected_log_loss": float(-np.average(surprise, weights=weight)),
    }


def value_metrics(p: np.ndarray, y: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Quality of an expected amount.

    Args:
        p: float[n], predicted amount, in y's unit. y: float[n], at least 0. weight: float[n], above 0.
    Returns: normalized_gini (1 where the order is perfect, 0 where it is random), spearman (unweighted), expected over
        observed, absolute and squared error, and by decile of the prediction.
    """
    p, y, weight = (np.asarray(a, dtype=np.float64) for a in (p, y, weight))
    total, observed = float(weight.sum()), float(weight @ y)
    curve = Curve(p, y, weight, np.abs(p - y))
    squared = ratio(float(weight @ (p - y) ** 2), total)
    return {
        "rows": len(p),
        "positives": int((y > 0).sum()),
        "base_rate": ratio(float(weight @ (y > 0)), total),
        "mean": ratio(observed, total),
        "normalized_gini": ratio(gini(curve), gini(Curve(y, y, weight))),
        "spearman": spearman(p, y),
        "mean_absolute_error": ratio(float(weight @ np.abs(p - y)), total),
        "root_mean_squared_error": None if squared is None else squared**0.5,
        "expected_over_observed": ratio(float(weight @ p), observed),
        "deciles": deciles(curve),
    }


class Curve:
    """Cumulative weight, labels, predictions (and errors) from the highest score down, one step a distinct score.

    Every array starts at 0; between the steps everything is linear.
    """

    def __init__(self, score: np.ndarray, y: np.ndarray, weight: np.ndarray, error: np.ndarray | None = None) -> None:
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(score) else np.zeros(0, dtype=np.int64)
        self.score = ranked[last]
        self.mass, self.hits, self.expected, self.error = (
            np.append(0.0, np.cumsum(values[order])[last])
            for values in (weight, weight * y, weight * score, weight * (error if error is not None else 0.0))
        )
        self.has_error = error is not None

    def at(self, name: str, mass: Any) -> Any:
        """One of the cumulative arrays at the given cumulative weights."""
        return np.interp(mass, self.mass, getattr(self, name))


def deciles(curve: Curve, parts: int = 10) -> list[dict[str, Any]]:
    """Equal shares of the weight, highest scores first: mean prediction, mean label and their ratio in each."""
    if curve.mass[-1] <= 0:
        return []
    edges = np.linspace(0, curve.mass[-1], parts + 1)
    share = float(curve.mass[-1]) / parts
    sums = {name: np.diff(curve.at(name, edges)) for name in ("expected", "hits", "error")}
    rows = []
    for i in range(parts):
        expected, observed = float(sums["expected"][i]), float(sums["hits"][i])
        row = {
            "decile": i + 1,
            "weight": share,
            "expected": expected / share,
            "observed": observed / share,
            "expected_over_observed": ratio(expected, observed),
        }
        if curve.has_error:
            row["mean_absolute_error"] = float(sums["error"][i]) / share
        rows.append(row)
    return rows


def at_budget(curve: Curve, budget: float) -> dict[str, Any]:
    """Holding back the highest-scored ``budget`` share of the weight: the share of positives caught and missed.

    ``threshold``: the lowest score held back.
    """
    mass = budget * float(curve.mass[-1])
    caught = float(curve.at("hits", mass))
    tpr = ratio(caught, float(curve.hits[-1]))
    threshold = None
    if len(curve.score):
        threshold = float(curve.score[min(int(np.searchsorted(curve.mass[1:], mass)), len(curve.score) - 1)])
    return {
        "budget": float(budget),
        "tpr": tpr,
        "fnr": None if tpr is None else 1 - tpr,
        "precision": ratio(caught, mass),
        "threshold": threshold,
    }


def gini(curve: Curve) -> float | None:
    """Twice the area between the curve of the captured amount and the diagonal; None where there is no amount."""
    if curve.mass[-1] <= 0 or curve.hits[-1] <= 0:
        return None
    mass, hits = curve.mass / curve.mass[-1], curve.hits / curve.hits[-1]
    return float(2 * np.trapezoid(hits, mass) - 1)


def spearman(p: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation, ties at their mean rank; None where either is constant."""
    if len(p) < 2 or (p == p[0]).all() or (y == y[0]).all():
        return None
    return float(np.corrcoef(pd.Series(p).rank().to_numpy(), pd.Series(y).rank().to_numpy())[0, 1])


def entropy(rate: float) -> float:
    """Of a coin of this rate, nats: the log loss of always predicting the base rate."""
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def ratio(above: float | None, below: float | None) -> float | None:
    """None where it has no meaning; never NaN or infinite, which strict JSON has no word for."""
    return None if above is None or below is None or below <= 0 else float(above / below)


def _log_loss(p: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float | None:
    from sklearn.metrics import log_loss

    if not len(p):
        return None
    return float(log_loss(y, np.clip(p, EPSILON, 1 - EPSILON), sample_weight=weight, labels=[0, 1]))
