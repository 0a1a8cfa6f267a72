"""Point-in-time features of decision points: the columns of X, from what a partition's rows say before each point.

A point sees ``[at - window, at)`` and nothing at or after ``at``. What each column means is in
:class:`~pipeline.features.spec.FeatureSpec`; what is computed here follows it alone. Each computation is a function of
a block of points and a feature, named by the feature's ``op``; the simple ones are here, the others in ``rhythm.py``,
``values.py``, ``families.py``, ``reactions.py``, ``states.py`` and ``own.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features import families, own, reactions, rhythm, states, values
from pipeline.features.blocks import Block, Rows
from pipeline.features.partition import Partition
from pipeline.features.spec import DAY, Feature, FeatureSpec, counts

POINTS = 1 << 13  # of a block: its columns stay in the CPU's cache


def write_features(
    part: Partition, spec: FeatureSpec, seg: Array, at: Array, timezone: str, out: Array, family: Array | None = None
) -> None:
    """Every feature of ``spec`` for each point, into ``out``.

    Args:
        seg, at: int64[q], ascending by (seg, at).
        timezone: IANA name; hours and weekdays are of this zone.
        out: float32[q, len(spec)].
        family: int64[q], see ``families.decided``; where absent no campaign is known.
    """
    if len(seg) == 0:
        return
    kinds, windows = list(spec.kinds), list(spec.windows)
    if part.vocabulary[: len(kinds)] != kinds:
        raise DataError("the partition's kinds must begin with the specification's")
    wide = len(kinds) * len(windows)
    direct = wide > 0 and list(spec.features[:wide]) == counts(kinds, windows)
    if direct and len(spec) == wide:
        # The whole rows, so that the compiled twin sees contiguous ones.
        part.window_counts(len(kinds), seg, at, windows, out)
        return
    rows = Rows(part, spec, timezone)
    mine = [
        (j, f) for j, f in enumerate(spec.features) if f.op != "context"
    ]  # not of a partition alone: see context.py
    # The array functions cost a pass over the partition at each call: there, one block of everything.
    size = POINTS if part.backend.compiled else len(seg)
    for start in range(0, len(seg), size):
        some = slice(start, start + size)
        block = Block(rows, seg[some], at[some], None if family is None else family[some])
        for j, feature in mine:
            out[some, j] = COLUMNS[feature.op](block, feature)


def _count(block: Block, feature: Feature) -> Array:
    found = block.count(feature.kind, feature.window)
    return found if feature.until is None else found - block.count(feature.kind, feature.until)


def _rate(block: Block, feature: Feature) -> Array:
    return block.rate(feature.kind, feature.window)


def _recency(block: Block, feature: Feature) -> Array:
    latest = block.last[:, block.spec.kinds.index(feature.kind or "")]
    return (block.at - block.xp.maximum(latest, block.at - block.spec.cap)) / DAY


def _streak(block: Block, feature: Feature) -> Array:
    part, rows = block.part, block.rows
    streak = part.backend.kernels.ignored_streak
    return streak(block.xp, part.starts, part.ts, rows.exposed, rows.responded, block.seg, block.at)


def _tenure(block: Block, feature: Feature) -> Array:
    return block.xp.maximum(block.at - block.part.ts[block.first_row], 0) / DAY


def _history(block: Block, feature: Feature) -> Array:
    seen = block.end - block.first_row
    machines = block.rows.machines_before
    return seen if machines is None else seen - (machines[block.end] - machines[block.first_row])


def _wave(name: str, period: int) -> Callable[[Block, Feature], Array]:
    # From small tables made on the host, so that both backends give the same bits.
    angle = 2 * np.pi * np.arange(period) / period
    table = {"sin": np.sin, "cos": np.cos}[name](angle).astype(np.float32)

    def column(block: Block, feature: Feature) -> Array:
        return block.xp.asarray(table)[block.local_hour if period == 24 else block.local_weekday]

    return column


COLUMNS: dict[str, Callable[[Block, Feature], Any]] = {
    "count": _count,
    "rate": _rate,
    "recency": _recency,
    "streak": _streak,
    "tenure": _tenure,
    "history": _history,
    "hour_sin": _wave("sin", 24),
    "hour_cos": _wave("cos", 24),
    "weekday_sin": _wave("sin", 7),
    "weekday_cos": _wave("cos", 7),
    "volume": rhythm.volume,
    "gap": rhythm.gap,
    "run": rhythm.run,
    "affinity": rhythm.affinity,
    "match": families.match,
    "reaction": reactions.reaction,
    "presence": states.state,
    "campaigns": values.campaigns,
    "active_days": values.active_days,
    "value": values.value,
    "own": own.column,
}
