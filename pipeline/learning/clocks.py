"""Features that tell the day or the campaign rather than the subscriber, which a network must not learn from.

The client's rate of last month is the same for everybody, and how long a young log knows somebody is nearly so. Of such
a feature training has as many values as days, and on each of them only the luck of its campaigns to explain; the days
that follow lie beyond all of them. A network that looks at it learns the luck, and is wrong about the level of every
later day. The same holds of a count over a window that reaches back to the log's beginning. A feature more than half of
whose ranks' variance is between days is left out of what the network sees (their eta squared, so that neither tails nor
units matter: Kruskal and Wallis 1952, doi:10.1080/01621459.1952.10483441).

The hour and the weekday come round, so that later days lie within what training has seen. But all who get a campaign
get it at about the same hour of the same weekday, which nearly name it, and a network learns the luck of each. Only
over many campaigns does that average out, and what is left is the hour's. With fewer, these features are left out too
where more than half of their ranks' variance is between campaigns (of a day each), on however few days: fewer days have
fewer campaigns. The hour of triggered mails differs within a campaign and is learned, and so is either where the log
has no campaigns. A feature of the user's own always is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.features.samples import TRAIN
from pipeline.features.table import FeatureTable
from pipeline.learning.rows import campaigns
from pipeline.options import UNITS

MOST = 0.5  # of the variance of a feature's ranks that may be between days, or campaigns
DAYS = 14  # of decisions at least; within fewer, days tell nothing of other days
CAMPAIGNS = 1000  # of a day, whose luck (deviation 0.25) then leaves an effect of the hour known within 0.01 logits
ROWS = 30_000  # that are looked at; each share is then known within 0.02
RECURRING = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")


def clocks(table: FeatureTable) -> np.ndarray:
    """Which features, bool[F], tell more of the day or the campaign than of the subscriber, among training rows."""
    backend = backend_of(table.X)
    xp = backend.xp
    rows = xp.flatnonzero(table.split == TRAIN)
    rows = rows[:: max(len(rows) // ROWS, 1)]
    found = np.zeros(table.X.shape[1], dtype=bool)
    if not len(rows):
        return found
    days, day = np.unique(table.points(rows)[1] // UNITS["d"], return_inverse=True)
    day, X = backend.asarray(day.reshape(-1)), table.X[rows]
    named, campaign = _named(table.keys.take(rows))
    few = len(named) > 0 and int((xp.bincount(campaign) > 0).sum()) < CAMPAIGNS
    for f, feature in enumerate(table.spec.features):
        if feature.op in RECURRING:
            found[f] = few and _told(xp, X[named, f], campaign, adjusted=True)
        elif feature.op != "own":
            found[f] = len(days) >= DAYS and _told(xp, X[:, f], day)
    return found


def _named(keys: Any) -> tuple[Array, Array]:
    """Which of a FeatureTable's keys are about a campaign, int64[m], and which one on which day, see ``campaigns``."""
    backend = backend_of(keys)
    if "campaign" not in keys.columns:
        return backend.xp.zeros(0, dtype=backend.xp.int64), backend.xp.zeros(0, dtype=backend.xp.int32)
    named = backend.xp.flatnonzero(backend.column(keys["campaign"].notna()))
    return named, campaigns(keys)[named]


def _told(xp: Any, x: Array, group: Array, adjusted: bool = False) -> bool:
    """Whether more than MOST of the variance of its ranks is between groups, int[n], numbers from 0 on.

    Args:
        adjusted: for what is there by chance, all of it where each group has one row (epsilon squared instead of eta
            squared: Kelley 1935, doi:10.1073/pnas.21.9.554).
    """
    rank, count = _ranks(xp, x), xp.bincount(group)
    mean = xp.bincount(group, rank) / xp.maximum(count, 1)
    within, whole = ((rank - mean[group]) ** 2).sum(), ((rank - rank.mean()) ** 2).sum()
    if adjusted:
        within, whole = within * (len(x) - 1), whole * (len(x) - int((count > 0).sum()))
    return bool(within < (1 - MOST) * whole)


def _ranks(xp: Any, x: Array) -> Array:
    """Twice the mean rank of each among all, from 0 on, float64[n]; equal ones share theirs."""
    ordered = xp.sort(x)
    return (xp.searchsorted(ordered, x, side="left") + xp.searchsorted(ordered, x, side="right")).astype(xp.float64)
