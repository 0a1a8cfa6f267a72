"""Features that tell the day rather than the subscriber, which a network must not learn from.

The client's rate of last month is the same for everybody, and how long a young log knows somebody is nearly so. Of
such a feature training has as many values as days, and on each of them only the luck of its campaigns to explain; the
days that follow lie beyond all of them. A network that looks at it learns the luck, and is wrong about the level of
every later day. So a feature more than half of whose variance is between days is left out of what the network sees
(its share of explained variance, eta squared: Fisher 1925). What comes round, the hour and the weekday, is learned all
the same, and so is a feature of the user's own.
"""

from __future__ import annotations

import numpy as np

from pipeline.backend import backend_of
from pipeline.features.samples import TRAIN
from pipeline.features.table import FeatureTable
from pipeline.options import UNITS

MOST = 0.5  # of a feature's variance that may be between days
DAYS = 14  # of decisions at least; within fewer, days tell nothing of other days
ROWS = 100_000  # that are looked at; each share is then known within 0.01
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
        x = X[:, f].astype(xp.float64)
        x = xp.sign(x) * xp.log1p(xp.abs(x - x.mean()))  # heavy tails would hide everything else
        mean = xp.bincount(day, x, len(days)) / count
        between, whole = (count * (mean - x.mean()) ** 2).sum(), ((x - x.mean()) ** 2).sum()
        found[f] = feature.op not in RECURRING and bool(between > MOST * whole) and bool(whole > 0)
    return found
