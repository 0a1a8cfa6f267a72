"""Numba twins of the filter, for the CPU: the same arguments and answers, one pass over each segment's exposures.

Beside it what the filter's parameters are learned with, on the CPU in any case.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pipeline.features.compiled import Array, compiled
from pipeline.features.filters import DAY, DAYS, HORIZON, HOUR, Chain, Exposures

__all__ = ["expectations", "filtered"]


@compiled
def _step(state: Array, moves: Array, seen: Array) -> None:
    total = 0.0
    for k in range(len(state)):
        awake = state[k, 0] * moves[k, 0, 0] + state[k, 1] * moves[k, 1, 0]
        asleep = state[k, 0] * moves[k, 0, 1] + state[k, 1] * moves[k, 1, 1]
        state[k, 0], state[k, 1] = awake * seen[k, 0], asleep * seen[k, 1]
        total += state[k, 0] + state[k, 1]
    for k in range(len(state)):
        state[k, 0] /= total
        state[k, 1] /= total


@compiled
def _days(earlier: int, later: int) -> int:
    return min((later - earlier + DAY // 2) // DAY, DAYS)


@compiled
def _level(reached: Array, row: int, until: int, end: int) -> int:
    found = 0
    for r in range(len(reached)):
        if reached[r, row] < until and reached[r, row] < end:
            found = r + 1
    return found


@compiled
def _filtered(
    starts: Array,
    ts: Array,
    reached: Array,
    start: Array,
    moves: Array,
    seen: Array,
    value: Array,
    seg: Array,
    at: Array,
    begin: Array,
    end: Array,
) -> Array:
    out = np.zeros((len(seg), len(value)))
    settled, state = np.empty_like(start), np.empty_like(start)
    current, row = np.int64(-1), np.int64(0)
    for i in range(len(seg)):
        first = starts[seg[i]]
        if seg[i] != current:
            current, row = seg[i], first
            for k in range(len(start)):
                settled[k, 0], settled[k, 1] = start[k, 0], start[k, 1]
        while row < begin[i]:
            until = ts[row] + HORIZON
            gap = _days(ts[row - 1], ts[row]) if row > first else 0
            _step(settled, moves[gap], seen[_level(reached, row, until, until), HORIZON // HOUR])
            row += 1
        for k in range(len(start)):
            state[k, 0], state[k, 1] = settled[k, 0], settled[k, 1]
        for young in range(begin[i], end[i]):
            gap = _days(ts[young - 1], ts[young]) if young > first else 0
            level = _level(reached, young, at[i], ts[young] + HORIZON)
            _step(state, moves[gap], seen[level, (at[i] - ts[young]) // HOUR])
        gap = _days(ts[end[i] - 1], at[i]) if end[i] > first else 0
        for k in range(len(state)):
            awake = state[k, 0] * moves[gap, k, 0, 0] + state[k, 1] * moves[gap, k, 1, 0]
            asleep = state[k, 0] * moves[gap, k, 0, 1] + state[k, 1] * moves[gap, k, 1, 1]
            for f in range(len(value)):
                out[i, f] += awake * value[f, k, 0] + asleep * value[f, k, 1]
    return out


@compiled
def _expectations(
    starts: Array, gap: Array, level: Array, start: Array, moves: Array, seen: Array
) -> tuple[Array, Array, Array, float]:
    first, moved, shown = np.zeros(start.shape), np.zeros(moves.shape), np.zeros(seen.shape)
    longest = 1
    for s in range(len(starts) - 1):
        longest = max(longest, starts[s + 1] - starts[s])
    forward, scale = np.empty((longest, *start.shape)), np.empty(longest)
    after, weighed = np.empty(start.shape), np.empty(start.shape)
    likelihood = 0.0
    for s in range(len(starts) - 1):
        a, n = starts[s], starts[s + 1] - starts[s]
        for t in range(n):
            to, here, total = moves[gap[a + t]], seen[level[a + t]], 0.0
            for k in range(len(start)):
                for x in range(2):
                    p = (
                        start[k, x]
                        if t == 0
                        else forward[t - 1, k, 0] * to[k, 0, x] + forward[t - 1, k, 1] * to[k, 1, x]
                    )
                    forward[t, k, x] = p * here[k, x]
                    total += forward[t, k, x]
            for k in range(len(start)):
                for x in range(2):
                    forward[t, k, x] /= total
            scale[t] = total
            likelihood += np.log(total)
        for t in range(n - 1, -1, -1):
            to, here = moves[gap[a + t]], seen[level[a + t]]
            for k in range(len(start)):
                for x in range(2):
                    if t == n - 1:
                        after[k, x] = 1.0
                    shown[level[a + t], k, x] += forward[t, k, x] * after[k, x]
                    weighed[k, x] = here[k, x] * after[k, x] / scale[t]
            for k in range(len(start)):
                for x in range(2):
                    if t == 0:
                        first[k, x] += forward[0, k, x] * after[k, x]
                        continue
                    for z in range(2):
                        moved[gap[a + t], k, x, z] += forward[t - 1, k, x] * to[k, x, z] * weighed[k, z]
                    after[k, x] = to[k, x, 0] * weighed[k, 0] + to[k, x, 1] * weighed[k, 1]
    return first, moved, shown, likelihood


def filtered(xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array) -> Array:
    """See :func:`filters.filtered`."""
    return cast(Array, _filtered(*exposures, *chain, seg, at, begin, end))


def expectations(
    starts: Array, gap: Array, level: Array, start: Array, moves: Array, seen: Array
) -> tuple[Array, Array, Array, float]:
    """How often each thing is expected to have happened, given all that is seen, and the log of its likelihood.

    Args:
        starts: int64[S+1], each sequence's first exposure and, last, their number m. gap: int64[m], days from the one
            before; level: int64[m], what came of it. start, moves: see :class:`Chain`. seen: float64[R + 1, K, 2].
    Returns: began as float64[K, 2], moved as float64[DAYS + 1, K, 2, 2], showed as float64[R + 1, K, 2].
    Source: the forward-backward algorithm, scaled: Rabiner 1989, doi:10.1109/5.18626.
    """
    return cast(tuple[Array, Array, Array, float], _expectations(starts, gap, level, start, moves, seen))
