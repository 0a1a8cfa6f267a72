"""How far a metric would move with other subscribers: a bootstrap that draws whole clusters of rows.

Rows of one subscriber depend on each other, so a replicate counts each *subscriber* a Poisson(1) number of times
(Chamandy et al. 2012; with many subscribers as good as drawing them with replacement, and a row's weight is all that
changes). Scores are sorted once; a replicate then costs a pass over the rows.

An interval is the estimate +- z standard deviations of its replicates, on a scale where the metric is nearly normal
(logit of a share, log of a ratio): 200 replicates are enough for a standard deviation, not for a tail (Efron and
Tibshirani 1993, ch. 6), and the replicates of a PR-AUC lie too high to be read as they are. What it does not know: that
sends of one campaign depend on each other, and that tomorrow differs from the hold-out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.learning.steps import Steps, Sums

LEVEL = 0.9  # of every interval here, as of those in the report
Z = 1.6448536269514722
TIMES = 200  # replicates
EPSILON = 1e-7  # as in metrics.py
ENOUGH = 0.9  # of the replicates must have the metric, or there is no interval
TOP = 0.1

BINARY = (
    "roc_auc", "pr_auc", "normalized_entropy", "log_loss", "brier",
    "expected_over_observed", "top_decile_expected_over_observed",
)  # fmt: skip
AMOUNTS = ("normalized_gini", "mean_absolute_error", "root_mean_squared_error", "expected_over_observed")

SHARES = ("roc_auc", "pr_auc")  # between 0 and 1
SCALES: dict[str, tuple[Any, Any]] = {  # there and back
    "share": (lambda v: np.log(v) - np.log1p(-v), lambda v: 1 / (1 + np.exp(-v))),
    "ratio": (np.log, np.exp),
    "any": (lambda v: v, lambda v: v),
}


@dataclass(frozen=True)
class Resamples:
    """Which cluster each row is of, int64[n] from 0 to clusters - 1, and the seed that the replicates are drawn with.

    The same seed draws the same replicates, whatever the score, the head or the order of the rows.
    """

    group: np.ndarray
    clusters: int
    seed: int = 0
    times: int = TIMES

    @classmethod
    def of(cls, cluster: np.ndarray, seed: int = 0, times: int = TIMES) -> Resamples:
        """``cluster``: [n], e.g. each row's subscriber key."""
        known, group = np.unique(np.asarray(cluster), return_inverse=True)
        return cls(group.reshape(-1), len(known), seed, times)

    def take(self, rows: np.ndarray) -> Resamples:
        """The same clusters, fewer rows."""
        return Resamples(self.group[rows], self.clusters, self.seed, self.times)

    def counts(self) -> Iterator[np.ndarray]:
        """How often each replicate counts each cluster, float64[clusters]."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.times):
            yield _POISSON[rng.integers(0, len(_POISSON), self.clusters, dtype=np.uint16)]


# Poisson(1) by its inverse distribution function at 16 random bits: a tenth of the time of drawing it exactly.
_POISSON = np.searchsorted(
    np.cumsum([math.exp(-1) / math.factorial(k) for k in range(9)]), (np.arange(1 << 16) + 0.5) / (1 << 16)
).astype(np.float64)


class Probabilities:
    """A probability and its labels, sorted once, to be measured under many weights.

    Args:
        score, y, weight: float64[n]; y is 0 or 1, or a true probability (a soft label, see metrics.py).
        resamples: of the same rows.
    """

    names = BINARY

    def __init__(self, score: np.ndarray, y: np.ndarray, weight: np.ndarray, resamples: Resamples) -> None:
        self.steps = Steps.of(score, y, weight, resamples.group)
        p = np.clip(score, EPSILON, 1 - EPSILON)
        loss = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        self.sums = _by_cluster(resamples, weight, [np.ones(len(y)), score, y, loss, (score - y) ** 2])

    def coarse(self) -> Probabilities:
        """The same with fewer steps, see :meth:`Steps.coarse`: saves time, for replicates."""
        other = copy(self)
        other.steps = self.steps.coarse()
        return other

    def measure(self, often: np.ndarray) -> dict[str, float]:
        """Every metric, NaN where undefined. ``often``: float64[clusters], how many times each cluster counts."""
        total, expected, observed, loss, squared = (float(v) for v in self.sums @ often)
        rate = observed / total if total > 0 else math.nan
        if not 0 < rate < 1:
            return dict.fromkeys(BINARY, math.nan)
        found = self.steps.sums(often, TOP * total)
        return {
            "roc_auc": found.wins / (found.hits * found.misses) if found.misses > 0 else math.nan,
            "pr_auc": found.precise / found.hits,
            "normalized_entropy": loss / total / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)),
            "log_loss": loss / total,
            "brier": squared / total,
            "expected_over_observed": expected / observed,
            "top_decile_expected_over_observed": found.expected / found.observed if found.observed > 0 else math.nan,
        }


class Amounts:
    """As :class:`Probabilities`, of an expected amount: score and y are at least 0, in one unit."""

    names = AMOUNTS

    def __init__(self, score: np.ndarray, y: np.ndarray, weight: np.ndarray, resamples: Resamples) -> None:
        self.ours, self.best = (Steps.of(by, y, weight, resamples.group) for by in (score, y))
        self.sums = _by_cluster(resamples, weight, [np.ones(len(y)), score, y, np.abs(score - y), (score - y) ** 2])

    def coarse(self) -> Amounts:
        """As :meth:`Probabilities.coarse`."""
        other = copy(self)
        other.ours, other.best = self.ours.coarse(), self.best.coarse()
        return other

    def measure(self, often: np.ndarray) -> dict[str, float]:
        """As :meth:`Probabilities.measure`."""
        total, expected, observed, absolute, squared = (float(v) for v in self.sums @ often)
        if total <= 0 or observed <= 0:
            return dict.fromkeys(AMOUNTS, math.nan)
        ours, best = (_gini(steps.sums(often, TOP * total)) for steps in (self.ours, self.best))
        return {
            "normalized_gini": ours / best if best > 0 else math.nan,
            "mean_absolute_error": absolute / total,
            "root_mean_squared_error": math.sqrt(squared / total),
            "expected_over_observed": expected / observed,
        }


def intervals(
    kind: type[Probabilities] | type[Amounts], score: np.ndarray, y: np.ndarray, weight: np.ndarray, draws: Resamples
) -> dict[str, list[float] | None]:
    """Each metric's interval, [low, high]; None where fewer than nine in ten replicates have the metric.

    Args:
        score, y, weight: float64[n], as ``kind`` takes them. draws: of the same rows.
    """
    exact = kind(score, y, weight, draws)
    estimate, coarse = exact.measure(np.ones(draws.clusters)), exact.coarse()
    drawn = [coarse.measure(often) for often in draws.counts()]
    return {name: _interval(name, estimate[name], np.array([d[name] for d in drawn])) for name in kind.names}


def difference(
    a: Any,
    b: Any,
    y: Any,
    weight: Any,
    cluster: Any,
    metric: str = "pr_auc",
    *,
    kind: type[Probabilities] | type[Amounts] = Probabilities,
    seed: int = 0,
    times: int = TIMES,
) -> tuple[float, float, float]:
    """Metric of score a less that of score b on the same rows, and its interval: (estimate, low, high).

    Paired: each replicate measures both scores on the same subscribers, so what both find hard cancels.

    Args:
        a, b, y, weight: float[n] on the host; y may be a true probability, for the expected metrics.
        cluster: [n], each row's subscriber. metric: one of ``kind.names``. kind: what the scores are.
    Returns: NaN three times where the metric is not defined, e.g. without a positive.
    Raises:
        ValueError: no such metric.
    """
    if metric not in kind.names:
        raise ValueError(f"no such metric: {metric!r}; there are {', '.join(kind.names)}")
    first, second, y, weight = (np.asarray(v, dtype=np.float64) for v in (a, b, y, weight))
    draws = Resamples.of(cluster, seed, times)
    exact = [kind(score, y, weight, draws) for score in (first, second)]
    measured = [each.measure(np.ones(draws.clusters))[metric] for each in exact]
    estimate = measured[0] - measured[1]
    one, other = (each.coarse() for each in exact)
    drawn = [one.measure(often)[metric] - other.measure(often)[metric] for often in draws.counts()]
    found = _interval("", estimate, np.array(drawn))
    return (math.nan, math.nan, math.nan) if found is None else (float(estimate), found[0], found[1])


def _by_cluster(resamples: Resamples, weight: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """Weighted sums of the columns, float64[columns, clusters]."""
    return np.stack([np.bincount(resamples.group, weight * c, resamples.clusters) for c in columns])


def _gini(found: Sums) -> float:
    """As metrics.gini."""
    return 2 * found.area / (found.mass * found.hits) - 1


def _interval(name: str, estimate: float, drawn: np.ndarray) -> list[float] | None:
    finite = drawn[np.isfinite(drawn)]
    if not math.isfinite(estimate) or len(finite) < max(ENOUGH * len(drawn), 2):
        return None
    there, back = SCALES["share" if name in SHARES else "any" if name in ("", "normalized_gini") else "ratio"]
    with np.errstate(divide="ignore"):
        centre, moved = there(np.float64(estimate)), there(finite)
    if not np.isfinite(centre) or not np.isfinite(moved).all():  # at the end of its scale, e.g. a perfect AUC
        return [float(end) for end in np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]
    half = Z * moved.std(ddof=1)
    return [float(back(centre - half)), float(back(centre + half))]
