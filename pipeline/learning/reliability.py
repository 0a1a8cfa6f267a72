"""Does what is predicted happen: the reliability curve with its band, and the calibration error beside its noise.

Bins hold equal shares of the weight, cut between distinct scores, so that neither the order of rows nor ties matter; a
constant score has one bin. Variances are over clusters of rows (subscribers), linearised: rows of one subscriber depend
on each other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.learning.intervals import Z

BINS = 20


def reliability(
    p: np.ndarray, y: np.ndarray, weight: np.ndarray, group: np.ndarray | None = None, bins: int = BINS
) -> dict[str, Any]:
    """The reliability curve and the expected calibration error.

    Args:
        p: float64[n], predicted probability. y: float64[n], 0 or 1. weight: float64[n], above 0.
        group: int64[n] from 0, each row's cluster; every row its own where None.
    Returns:
        reliability: ascending bins of predicted, observed, weight, and low and high, the 90% band of observed: Wilson's
            interval (1927) of as many independent rows as have the variance of these clusters.
        ece: sum over bins of the share of the weight times |predicted - observed|.
        ece_noise: what ``ece`` would be on average if the probabilities were exact (a gap that is normal with the
            variance seen has a mean size of sqrt(2 / pi) standard deviations). An ece near it says nothing.
    """
    if not len(p):
        return {"reliability": [], "ece": None, "ece_noise": None}
    which = _bins(p, weight, bins)
    cluster = np.arange(len(p)) if group is None else group
    mass = np.bincount(which, weight)
    predicted, observed = (np.bincount(which, weight * a) / mass for a in (p, y))
    gap = predicted - observed
    # Kish's effective number of rows; clusters can only make it smaller.
    rows = mass**2 / np.bincount(which, weight**2)
    spread = _variance(which, cluster, weight * (y - observed[which])) / mass**2
    exact = np.sqrt(_variance(which, cluster, weight * (p - y - gap[which]))) / mass
    curve = []
    for b in range(len(mass)):
        n = min(rows[b], observed[b] * (1 - observed[b]) / spread[b]) if spread[b] > 0 else rows[b]
        low, high = wilson(float(observed[b]), float(n))
        bin_ = {"predicted": predicted[b], "observed": observed[b], "low": low, "high": high, "weight": mass[b]}
        curve.append({name: float(value) for name, value in bin_.items()})
    share = mass / mass.sum()
    return {
        "reliability": curve,
        "ece": float(share @ np.abs(gap)),
        "ece_noise": float(share @ exact) * math.sqrt(2 / math.pi),
    }


def wilson(share: float, n: float) -> tuple[float, float]:
    """90% interval of a share of n independent rows (Wilson 1927)."""
    z2 = Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _bins(p: np.ndarray, weight: np.ndarray, bins: int) -> np.ndarray:
    """Each row's bin, int64[n], ascending in p without gaps: where the middle of its score's weight lies."""
    _, step = np.unique(p, return_inverse=True)
    mass = np.bincount(step, weight)
    middle = np.cumsum(mass) - mass / 2
    return np.unique((middle / mass.sum() * bins).astype(np.int64), return_inverse=True)[1][step]


def _variance(which: np.ndarray, group: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Variance of each bin's sum of residuals, which is the sum of the squared sums of its clusters: float64[bins]."""
    bins = int(which.max()) + 1
    pairs, pair = np.unique(group * bins + which, return_inverse=True)
    return np.bincount(pairs % bins, np.bincount(pair, residual) ** 2, bins)
