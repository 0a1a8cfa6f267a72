"""The clocks of the clients' time zones, as array arithmetic on microseconds."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import zoneinfo
from typing import Any

import numpy as np

from pipeline.backend import Array

_DAY = 86_400_000_000


def clock(timezone: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """When the zone's offset from UTC changes between two times, and to what: int64[z] microseconds each, the first
    entry before all times."""
    if timezone == "UTC":
        return np.array([-(1 << 62)], dtype=np.int64), np.zeros(1, dtype=np.int64)
    return _offsets(timezone, low // _DAY, high // _DAY)


def local_time(xp: Any, at: Array, timezone: str) -> Array:
    """UTC microseconds as microseconds of the zone's wall clock: int64[q]."""
    if len(at) == 0 or timezone == "UTC":
        return at
    since, offsets = clock(timezone, int(at.min()), int(at.max()))
    index = xp.searchsorted(xp.asarray(since), at, side="right") - 1
    return at + xp.asarray(offsets)[xp.maximum(index, 0)]


@functools.lru_cache(maxsize=64)
def _offsets(timezone: str, first_day: int, last_day: int) -> tuple[np.ndarray, np.ndarray]:
    """When the zone's offset from UTC changes, and to what: int64 microseconds each, the first entry before all.

    zoneinfo keeps its transitions to itself: probe twice a day, then bisect to the second.
    """
    zone = zoneinfo.ZoneInfo(timezone)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

    def offset(second: int) -> int:
        found = zone.utcoffset((epoch + dt.timedelta(seconds=second)).astimezone(zone))
        return int(found.total_seconds()) if found else 0

    step = 43_200
    probes = range(first_day * 86_400, (last_day + 1) * 86_400 + step, step)
    since, offsets = [-(1 << 62)], [offset(probes[0])]
    for a, b in itertools.pairwise(probes):
        if offset(b) == offsets[-1]:
            continue
        low, high, before = a, b, offsets[-1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == before else (low, middle)
        since.append(high * 1_000_000)
        offsets.append(offset(b))
    return np.array(since, dtype=np.int64), np.array(offsets, dtype=np.int64) * 1_000_000
