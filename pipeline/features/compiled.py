"""Numba twins of the array kernels, for the CPU: the same arguments, the same answers, one pass over the rows.

Each releases the GIL, so partitions run side by side in threads, and is cached on disk. Points must ascend by
(seg, at), except in :func:`lower_bounds`. See ``kernels.py`` for what each computes; tests run both. Kernels that are
fast enough as arrays are the reference's own. :func:`warm_up` compiles everything, so that the time can be told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np

from pipeline.features.kernels import attribute, hash64, hashed_share, last_before, prefix_count, sum_at

__all__ = [
    "attribute",
    "hash64",
    "hashed_share",
    "ignored_streak",
    "last_before",
    "last_times",
    "lower_bounds",
    "prefix_count",
    "segments",
    "sum_at",
    "warm_up",
    "window_counts",
]

Array = np.ndarray[Any, Any]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], numba.njit(nogil=True, cache=True)(function))


@compiled
def _segments(key: Array, ts: Array) -> tuple[Array, Array, bool]:
    n = len(key)
    seg = np.empty(n, np.int64)
    count = 0
    ordered = True
    for i in range(n):
        if i == 0 or key[i] != key[i - 1]:
            ordered &= i == 0 or key[i] > key[i - 1]
            count += 1
        else:
            ordered &= ts[i] >= ts[i - 1]
        seg[i] = count - 1
    starts = np.empty(count + 1, np.int64)
    starts[count] = n
    for i in range(n - 1, -1, -1):
        starts[seg[i]] = i
    return starts, seg, ordered


@compiled
def _lower_bounds(starts: Array, ts: Array, seg: Array, at: Array) -> Array:
    out = np.empty(len(seg), np.int64)
    for i in range(len(seg)):
        low, high = starts[seg[i]], starts[seg[i] + 1]
        while low < high:
            middle = (low + high) >> 1
            if ts[middle] < at[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = low
    return out


LANES = 8  # counts of a row are padded to so many: what a vector register takes
FEW = 16  # rows for each point, from where on a search takes less time than a merge
FAR = 2**62
_EXACT = 2**24  # float32 holds every integer up to here
_ONE = np.uint64(1)


@compiled
def _window_counts(
    starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, windows: Array, out: Array, before: Array
) -> None:
    # Where a window begins is found by merging a segment's rows with its points, a step at a time, for all windows side
    # by side and without a branch that depends on the data, which the processor would guess wrongly every other time.
    # Counts are differences of two rows of ``before``, the segment's running counts.
    number, lanes = len(windows), before.shape[1]
    points, run = 0, 0
    for i in range(len(seg)):
        run = run + 1 if i and seg[i] == seg[i - 1] else 1
        points = max(points, run)
    clock, instant = np.empty(len(before), np.int64), np.empty(points + 1, np.int64)
    place = np.empty((points + 1, number), np.uint64)
    row, point = np.empty(number, np.uint64), np.empty(number, np.uint64)
    i = 0
    while i < len(seg):
        begin = starts[seg[i]]
        n, q = starts[seg[i] + 1] - begin, 0
        while i + q < len(seg) and seg[i + q] == seg[i]:
            instant[q] = at[i + q]
            q += 1
        for r in range(n):
            clock[r] = ts[begin + r]
            code = codes[begin + r]
            for k in range(lanes):
                before[r + 1, k] = before[r, k] + before.dtype.type(code == k)
        if q * FEW < n:
            for p in range(q):
                for w in range(number):
                    place[p, w] = np.searchsorted(clock[:n], instant[p] - windows[w])
        else:
            clock[n], instant[q] = FAR, -FAR  # past all rows, and past all points, nothing moves on
            row[:] = 0
            point[:] = 0
            for _ in range(n + q):
                for w in range(number):
                    a, b = row[w], point[w]
                    passed = np.uint64(clock[a] < instant[b] - windows[w])
                    place[b, w] = a
                    row[w] = a + passed
                    point[w] = b + min(_ONE - passed, np.uint64(q) - b)
        for p in range(q):
            now = before[place[p, 0]]
            for w in range(1, number):
                then, counts = before[place[p, w]], out[i + p, (w - 1) * kinds : w * kinds]
                for k in range(kinds):
                    counts[k] = now[k] - then[k]
        i += q


@compiled
def _last_times(starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, never: int) -> Array:
    out = np.empty((len(seg), kinds), np.int64)
    latest = np.empty(kinds, np.int64)
    current, now, stop = np.int64(-1), np.int64(0), np.int64(0)
    for i in range(len(seg)):
        if seg[i] != current:
            current = seg[i]
            now, stop = starts[current], starts[current + 1]
            latest[:] = never
        while now < stop and ts[now] < at[i]:
            code = codes[now]
            if 0 <= code < kinds:
                latest[code] = ts[now]
            now += 1
        out[i, :] = latest
    return out


@compiled
def _ignored_streak(starts: Array, ts: Array, exposed: Array, responded: Array, seg: Array, at: Array) -> Array:
    out = np.empty(len(seg), np.int64)
    current, now, stop = np.int64(-1), np.int64(0), np.int64(0)
    streak, answered = np.int64(0), np.int64(0)
    heard = False
    for i in range(len(seg)):
        if seg[i] != current:
            current = seg[i]
            now, stop = starts[current], starts[current + 1]
            streak, heard = np.int64(0), False
        while now < stop and ts[now] < at[i]:
            if responded[now]:
                streak, heard, answered = np.int64(0), True, ts[now]
            elif exposed[now] and not (heard and ts[now] == answered):
                streak += 1
            now += 1
        out[i] = streak
    return out


# -- the interface of kernels.py -------------------------------------------------------------------------------


def segments(xp: Any, key: Array, ts: Array) -> tuple[Array, Array, bool]:
    """See :func:`kernels.segments`; one pass."""
    starts, seg, ordered = _segments(key, ts)
    return starts, seg, bool(ordered)


def lower_bounds(xp: Any, starts: Array, ts: Array, seg: Array, at: Array) -> Array:
    """See :func:`kernels.lower_bounds`; a binary search within the segment, which cannot overflow."""
    return cast(Array, _lower_bounds(starts, ts, seg, at))


def window_counts(
    xp: Any, starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, windows: list[int], out: Array
) -> None:
    """See :func:`kernels.window_counts`; running counts of one segment at a time, and where each window begins."""
    if len(seg) == 0:
        return
    longest = int(np.diff(starts[seg[0] : seg[-1] + 2]).max())
    lanes = -(-kinds // LANES) * LANES
    before = np.zeros((longest + 1, lanes), np.float32 if longest < _EXACT else np.int64)
    reaches = np.array([0, *windows], dtype=np.int64)
    _window_counts(starts, ts, codes, kinds, seg, at, reaches, out, before)


def last_times(xp: Any, starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, never: int) -> Array:
    """See :func:`kernels.last_times`."""
    return cast(Array, _last_times(starts, ts, codes, kinds, seg, at, never))


def ignored_streak(xp: Any, starts: Array, ts: Array, exposed: Array, responded: Array, seg: Array, at: Array) -> Array:
    """See :func:`kernels.ignored_streak`."""
    return cast(Array, _ignored_streak(starts, ts, exposed, responded, seg, at))


def warm_up() -> float:
    """Compile, or load from the cache, every twin for the types in use; seconds it took."""
    began = time.perf_counter()
    key, ts = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    codes, mask = np.zeros(2, dtype=np.int32), np.zeros(2, dtype=bool)
    starts, seg, _ = segments(np, key, ts)
    lower_bounds(np, starts, ts, seg, ts)
    window_counts(np, starts, ts, codes, 1, seg, ts, [1], np.zeros((2, 1), dtype=np.float32))
    last_times(np, starts, ts, codes, 1, seg, ts, 0)
    ignored_streak(np, starts, ts, mask, mask, seg, ts)
    return time.perf_counter() - began
