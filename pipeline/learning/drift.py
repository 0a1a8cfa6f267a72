"""Whether the rows that a model meets still look like those it learned from: the population stability index.

PSI = sum over bins of (q - p) ln(q / p), p and q the shares of the training rows and of the latest ones in bins of
equal training mass. Two samples of one population have a PSI too: about (1/n + 1/m) times a chi-square of (bins - 1)
degrees of freedom (Yurdakul and Naranjo 2020), n and m the sizes. What chance can explain, with that many features
looked at, is taken off before the threshold; n and m count subscribers, because rows of one subscriber are alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipeline.backend import backend_of
from pipeline.features.samples import HOLDOUT, TRAIN
from pipeline.features.spec import Feature, FeatureSpec
from pipeline.features.table import FeatureTable
from pipeline.options import UNITS

BINS = 10
ROWS = 50_000  # of each side; more change no share by as much as a hundredth
LATEST = 7 * UNITS["d"]  # the latest decision points are those of so long before the last
CHANCE = 0.001  # of calling any feature of an unchanged population drifted


@dataclass(frozen=True)
class Drift:
    """One feature: its ``psi``, and ``noise``, what chance alone seldom exceeds."""

    name: str
    psi: float
    noise: float

    @property
    def beyond_noise(self) -> float:
        return max(self.psi - self.noise, 0.0)


@dataclass(frozen=True)
class Sample:
    """Decision points on the host. ``X``: float32[n, F]; ``at``: int64[n], microseconds; ``subscriber``: int64[n]."""

    X: np.ndarray
    at: np.ndarray
    subscriber: np.ndarray

    def since(self, time: int) -> Sample:
        chosen = self.at >= time
        return Sample(self.X[chosen], self.at[chosen], self.subscriber[chosen])

    @property
    def subscribers(self) -> int:
        return len(np.unique(self.subscriber))


def reach(feature: Feature, cap: int) -> int | None:
    """How far back a feature looks, microseconds; None where its distribution changes though nobody behaves otherwise.

    What counts a whole history grows with it; a rate of the client or of an hour is one number a day; and the hour of a
    decision is the sender's choice, made once for thousands of rows.

    Args:
        cap: the longest recency, see ``FeatureSpec.cap``.
    """
    if feature.op == "context":
        return None
    if feature.window is None and (feature.op == "recency" or (feature.op, feature.how) == ("gap", "last")):
        return cap
    return feature.window


def of_table(
    table: FeatureTable, subscriber: np.ndarray, logs: Iterable[slice] = (slice(None),), seed: int = 0
) -> list[Drift]:
    """How far the features of the latest decision points are from those of training.

    Args:
        subscriber: int64[n], whose each row is, no two of them alike in two logs.
        logs: the rows of each client; every log has a beginning and an end of its own.
        seed: of the rows that are looked at, where there are more than ROWS.
    """
    backend = backend_of(table.X)
    since = table.points()[1].copy()
    split, late = backend.to_host(table.split), np.zeros(len(table), dtype=bool)
    for rows in logs:
        mine = since[rows]
        if len(mine):
            late[rows], since[rows] = mine >= mine.max() - LATEST, mine - mine.min()
    rng, samples = np.random.default_rng(seed), []
    for chosen in (split == TRAIN, (split == HOLDOUT) & late):
        index = np.flatnonzero(chosen)
        index = np.sort(rng.choice(index, ROWS, replace=False)) if len(index) > ROWS else index
        samples.append(Sample(backend.to_host(table.X[backend.asarray(index)]), since[index], subscriber[index]))
    train, latest = samples
    return drifts(train, latest, table.spec, 0)


def drifts(train: Sample, latest: Sample, spec: FeatureSpec, first: int) -> list[Drift]:
    """Every feature that can be judged, the most drifted first.

    A feature is compared with the training rows from which it could look back as far as it does: before, the log's
    beginning is in its window, and rows there are others. One that no training row could is not judged.

    Args:
        first: when the log begins, in microseconds as ``at`` of the samples.
    """
    if not len(latest.X):
        return []
    looks = {j: back for j, feature in enumerate(spec.features) if (back := reach(feature, spec.cap)) is not None}
    found = []
    for back in sorted(set(looks.values())):
        full = train.since(first + back)
        if not len(full.X):
            continue
        size = 1 / full.subscribers + 1 / latest.subscribers
        for j in (j for j, other in looks.items() if other == back):
            value, bins = psi(full.X[:, j], latest.X[:, j])
            found.append(Drift(spec.features[j].name, value, chi_square(1 - CHANCE / len(looks), bins - 1) * size))
    return sorted(found, key=lambda d: (-d.beyond_noise, -d.psi, d.name))


def psi(expected: np.ndarray, actual: np.ndarray, bins: int = BINS) -> tuple[float, int]:
    """The population stability index, and how many bins it took: equal values share one, so there may be fewer.

    Args:
        expected, actual: float[n] and float[m]; bins are cut at quantiles of ``expected``. An empty bin counts half a
            row, so that a value never seen before is a large number and not an infinite one.
    """
    edges = np.unique(np.quantile(expected, np.arange(1, bins) / bins, method="inverted_cdf"))
    # Above the last edge there may be no training row: then that bin is for what training never saw.
    shares = []
    for values in (expected, actual):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    p, q = shares
    return float(((q - p) * np.log(q / p)).sum()), len(edges) + 1


def chi_square(share: float, degrees: int) -> float:
    """The quantile of a chi-square distribution, within 12% for shares near 1 (Wilson and Hilferty 1931)."""
    if degrees < 1:
        return 0.0
    width = 2 / (9 * degrees)
    return float(degrees * (1 - width + NormalDist().inv_cdf(share) * width**0.5) ** 3)
