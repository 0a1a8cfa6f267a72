"""Features that tell the day rather than the subscriber, which a network must not learn from.

The client's rate of last month is the same for everybody, and how long a young log knows somebody is nearly so. Of such
a feature training has as many values as days, and on each of them only the luck of its campaigns to explain; the days
that follow lie beyond all of them. A network that looks at it learns the luck, and is wrong about the level of every
later day. The same holds of a count over a window that reaches back to the log's beginning. A feature more than half of
whose ranks' variance is between days is left out of what the network sees (their eta squared, so that neither tails nor
units matter: Kruskal and Wallis 1952, doi:10.1080/01621459.1952.10483441). What comes round, the hour and the weekday,
is learned all the same, and so is a feature of the user's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.features.samples import TRAIN
from pipeline.features.table import FeatureTable
from pipeline.options import UNITS

MOST = 0.5  # of the variance of a feature's ranks that may be between days
DAYS = 14  # of decisions at least; within fewer, days tell nothing of other days
ROWS = 30_000  # that are looked at; each share is then known within 0.02
RECURRING = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "own")


def clocks(table: FeatureTable) -> np.ndarray:
    """Which features, bool[F], tell more of the day than of the subscriber, among a table's training rows."""
    backend = backend_of(table.X)
    xp = backend.xp
    rows = xp.flatnonzero(table.split == TRAIN)
    rows = rows[:: max(len(rows) // ROWS, 1)]
    found = np.zeros(table.X.shape[1], dtype=bool)
    days, day = np.unique(table.points(rows)[1] // UNITS["d"], return_inverse=True)
    if len(days) < DAYS:
        return found
    day, X = backend.asarray(day.reshape(-1)), table.X[rows]
    count = xp.bincount(day, minlength=len(days))
    for f, feature in enumerate(table.spec.features):
        rank = _ranks(xp, X[:, f])
        mean = xp.bincount(day, rank, len(days)) / count
        between, whole = (count * (mean - rank.mean()) ** 2).sum(), ((rank - rank.mean()) ** 2).sum()
        found[f] = feature.op not in RECURRING and bool(between > MOST * whole) and bool(whole > 0)
    return found


def _ranks(xp: Any, x: Array) -> Array:
    """Twice the mean rank of each among all, from 0 on, float64[n]; equal ones share theirs."""
    ordered = xp.sort(x)
    return (xp.searchsorted(ordered, x, side="left") + xp.searchsorted(ordered, x, side="right")).astype(xp.float64)
