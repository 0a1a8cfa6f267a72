"""Numba twins of the windows' array functions, for the CPU: the same arguments and answers, one pass over the rows.

Windows must ascend in both bounds, as those of ascending decision points do. See ``aggregates.py`` for what each
computes; tests run both. Functions that are fast enough as arrays are the reference's own.
"""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np

from pipeline.features.aggregates import pick, prefix_sum, run_ends, run_lengths
from pipeline.features.compiled import Array, compiled

__all__ = [
    "longest_runs",
    "pick",
    "prefix_sum",
    "run_ends",
    "run_lengths",
    "warm_up",
    "window_code_counts",
    "window_distinct",
    "window_max",
    "window_positions",
]


@compiled
def _window_positions(starts: Array, ts: Array, seg: Array, at: Array, windows: Array) -> Array:
    number = len(windows)
    out = np.empty((number, len(seg)), np.int64)
    for w in range(number):
        current, row, stop = np.int64(-1), np.int64(0), np.int64(0)
        for i in range(len(seg)):
            if seg[i] != current:
                current = seg[i]
                row, stop = starts[current], starts[current + 1]
            oldest = at[i] - windows[w]
            while row < stop and ts[row] < oldest:
                row += 1
            out[w, i] = row
    return out


@compiled
def _window_max(values: Array, begin: Array, end: Array, empty: int) -> Array:
    # A queue of the rows that may still become the greatest: ascending rows of descending values.
    out = np.empty(len(begin), np.int64)
    longest = np.int64(1)
    for i in range(len(begin)):
        longest = max(longest, end[i] - begin[i])
    size = np.int64(1)
    while size <= longest:
        size *= 2
    queue = np.empty(size, np.int64)
    head, tail, reached = np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(begin)):
        low, high = begin[i], end[i]
        if high <= low:
            out[i] = empty
            continue
        if low >= reached:
            head, tail, reached = np.int64(0), np.int64(0), low
        while head < tail and queue[head & (size - 1)] < low:
            head += 1
        while reached < high:
            value = values[reached]
            while tail > head and values[queue[(tail - 1) & (size - 1)]] <= value:
                tail -= 1
            queue[tail & (size - 1)] = reached
            tail += 1
            reached += 1
        out[i] = values[queue[head & (size - 1)]]
    return out


@compiled
def _window_distinct(codes: Array, number: int, begin: Array, end: Array) -> Array:
    out = np.empty(len(begin), np.int64)
    count = np.zeros(number, np.int32)
    left, reached, distinct = np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(begin)):
        low, high = begin[i], end[i]
        while left < min(low, reached):
            code = codes[left]
            count[code] -= 1
            if count[code] == 0:
                distinct -= 1
            left += 1
        if low > reached:
            left = reached = low
        while reached < high:
            code = codes[reached]
            if count[code] == 0:
                distinct += 1
            count[code] += 1
            reached += 1
        out[i] = distinct
    return out


@compiled
def _window_code_counts(codes: Array, number: int, begin: Array, end: Array, wanted: Array) -> Array:
    out = np.empty(len(begin), np.int64)
    count = np.zeros(number, np.int64)
    left, reached = np.int64(0), np.int64(0)
    for i in range(len(begin)):
        low, high = begin[i], end[i]
        while left < min(low, reached):
            count[codes[left]] -= 1
            left += 1
        if low > reached:
            left = reached = low
        while reached < high:
            count[codes[reached]] += 1
            reached += 1
        out[i] = count[wanted[i]]
    return out


# -- the interface of aggregates.py ----------------------------------------------------------------------------


def window_positions(xp: Any, starts: Array, ts: Array, seg: Array, at: Array, windows: list[int]) -> list[Array]:
    """See :func:`aggregates.window_positions`; a moving position for each window."""
    return list(_window_positions(starts, ts, seg, at, np.array(windows, dtype=np.int64)))


def window_max(xp: Any, values: Array, begin: Array, end: Array, empty: int = 0) -> Array:
    """See :func:`aggregates.window_max`; a monotone queue."""
    return cast(Array, _window_max(values, begin, end, empty))


def window_distinct(xp: Any, codes: Array, number: int, begin: Array, end: Array) -> Array:
    """See :func:`aggregates.window_distinct`; two moving positions and a counter for each code."""
    return cast(Array, _window_distinct(codes, number, begin, end))


def window_code_counts(xp: Any, codes: Array, number: int, begin: Array, end: Array, wanted: Array) -> Array:
    """See :func:`aggregates.window_code_counts`; two moving positions and a counter for each code."""
    return cast(Array, _window_code_counts(codes, number, begin, end, wanted))


def longest_runs(xp: Any, lengths: Array, ends: Array, begin: Array, end: Array) -> Array:
    """See :func:`aggregates.longest_runs`."""
    stop = np.minimum(ends[begin], end)
    return cast(Array, np.maximum(stop - begin, window_max(xp, lengths, stop, end)))


def warm_up() -> float:
    """Compile, or load from the cache, every twin for the types in use; seconds it took."""
    began = time.perf_counter()
    some = np.zeros(2, dtype=np.int64)
    window_positions(np, np.array([0, 2]), some, some, some, [0])
    window_max(np, some, some, some)
    for codes in (some, some.astype(np.int32)):
        window_distinct(np, codes, 1, some, some)
        window_code_counts(np, codes, 1, some, some, some)
    return time.perf_counter() - began
