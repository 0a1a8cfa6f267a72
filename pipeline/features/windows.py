"""Point-in-time features of decision points: counts, recencies, rates, streaks, tenure and the calendar.

A point sees ``[at - window, at)`` and nothing at or after ``at``. What each column means is in
:class:`~pipeline.features.spec.FeatureSpec`; what is computed here follows it alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.calendar import local_time
from pipeline.features.partition import Partition
from pipeline.features.spec import DAY, SMOOTH_HITS, SMOOTH_TRIALS, FeatureSpec

_HOUR = 3_600_000_000


def write_features(part: Partition, spec: FeatureSpec, seg: Array, at: Array, timezone: str, out: Array) -> None:
    """Every feature of ``spec`` for each point, into ``out``.

    Args:
        seg, at: int64[q], ascending by (seg, at).
        timezone: IANA name; hours and weekdays are of this zone.
        out: float32[q, len(spec)].
    """
    if len(seg) == 0:
        return
    xp = part.xp
    kinds, windows = list(spec.kinds), list(spec.windows)
    if part.vocabulary[: len(kinds)] != kinds:
        raise DataError("the partition's kinds must begin with the specification's")
    ops = {f.op for f in spec.features}
    sources: dict[str, Array] = {"at": at}
    wide, direct = len(kinds) * len(windows), False
    if ops & {"count", "rate"}:
        direct = [f.name for f in spec.features[:wide]] == [f.name for f in FeatureSpec.counts(kinds, windows).features]
        # The whole rows, so that the compiled twin sees contiguous ones.
        sources["counts"] = out if direct else xp.empty((len(seg), wide), dtype=xp.float32)
        part.window_counts(len(kinds), seg, at, windows, sources["counts"])
    if "recency" in ops:
        sources["last"] = part.last_times(len(kinds), seg, at)
    if "streak" in ops:
        sources["streak"] = part.ignored_streak((spec.exposure or "",), spec.responses, seg, at)
    if "tenure" in ops:
        sources["first"] = part.ts[part.starts[seg]]
    if "history" in ops:
        sources["history"] = part.history(seg, at)
    if ops & {"hour_sin", "hour_cos", "weekday_sin", "weekday_cos"}:
        sources["local"] = local_time(xp, at, timezone)
    if direct and len(spec) == wide:
        return
    # Column after column of a row-major matrix: in blocks of rows that stay in the CPU's cache.
    block = len(seg) if part.backend.on_gpu else 1 << 13
    for start in range(0, len(seg), block):
        rows = slice(start, start + block)
        _derive(xp, spec, {name: source[rows] for name, source in sources.items()}, direct, out[rows])


def _derive(xp: Any, spec: FeatureSpec, sources: dict[str, Array], direct: bool, out: Array) -> None:
    """The columns of a block of rows from what the kernels found; counts are there already where ``direct``."""
    kinds = list(spec.kinds)
    column = {(k, w): i * len(kinds) + j for i, w in enumerate(spec.windows) for j, k in enumerate(kinds)}
    at, counts = sources["at"], sources.get("counts")
    calendar = _calendar(xp, sources["local"]) if "local" in sources else {}
    for j, feature in enumerate(spec.features):
        if feature.op == "count":
            assert counts is not None
            source = column[feature.kind, feature.window]  # type: ignore[index]
            if not direct or source != j:
                out[:, j] = counts[:, source]
        elif feature.op == "rate":
            assert counts is not None
            hits = counts[:, column[feature.kind, feature.window]]  # type: ignore[index]
            trials = counts[:, column[spec.exposure, feature.window]]  # type: ignore[index]
            for bounce in spec.bounces:
                trials = trials - counts[:, column[bounce, feature.window]]  # type: ignore[index]
            trials = xp.maximum(trials, np.float32(0))
            out[:, j] = (hits + np.float32(SMOOTH_HITS)) / (trials + np.float32(SMOOTH_TRIALS))
        elif feature.op == "recency":
            latest = sources["last"][:, kinds.index(feature.kind)]  # type: ignore[arg-type]
            out[:, j] = (at - xp.maximum(latest, at - spec.cap)) / DAY
        elif feature.op == "tenure":
            out[:, j] = xp.maximum(at - sources["first"], 0) / DAY
        elif feature.op == "context":
            continue  # not of a partition alone: context.py writes it
        elif feature.op in sources:
            out[:, j] = sources[feature.op]
        else:
            out[:, j] = calendar[feature.op]


# -- the calendar ----------------------------------------------------------------------------------------------


def _calendar(xp: Any, local: Array) -> dict[str, Array]:
    hour = local // _HOUR % 24
    weekday = (local // DAY + 3) % 7  # 1970-01-01 was a Thursday
    waves = {}
    for name, value, period in (("hour", hour, 24), ("weekday", weekday, 7)):
        # From small tables made on the host, so that both backends give the same bits.
        angle = 2 * np.pi * np.arange(period) / period
        waves[f"{name}_sin"] = xp.asarray(np.sin(angle).astype(np.float32))[value]
        waves[f"{name}_cos"] = xp.asarray(np.cos(angle).astype(np.float32))[value]
    return waves
