"""Numba twins of the filter, for the CPU: the same arguments and answers, one pass over each segment's exposures.

Beside it what the filter's parameters are learned with, on the CPU in any case.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pipeline.features.compiled import Array, compiled
from pipeline.features.filters import DAY, DAYS, HORIZON, HOUR, LEAST, Chain, Exposures

__all__ = ["expectations", "filtered"]


@compiled
def _shifted(steps: Array, leaning: float, out: Array) -> None:
    odds = np.exp(leaning)
    for a in range(len(steps)):
        for k in range(steps.shape[1]):
            for x in range(2):
                p = steps[a, k, x]
                out[a, k, x] = p * odds / (1 - p + p * odds)


@compiled
def _move(state: Array, moves: Array) -> None:
    for k in range(len(state)):
        awake = state[k, 0] * moves[k, 0, 0] + state[k, 1] * moves[k, 1, 0]
        asleep = state[k, 0] * moves[k, 0, 1] + state[k, 1] * moves[k, 1, 1]
        state[k, 0], state[k, 1] = awake, asleep


@compiled
def _slopes(state: Array, steps: Array, given: int, due: Array) -> tuple[float, float]:
    """``given``: how many answers were."""
    score, information = 0.0, 0.0
    for a in range(min(given + 1, len(steps))):
        before, grown, now, grows = 0.0, 0.0, 0.0, 0.0
        for k in range(len(state)):
            for x in range(2):
                likely, slope = state[k, x], 0.0
                for earlier in range(a):
                    step = steps[earlier, k, x]
                    likely, slope = likely * step, (slope + likely * (1 - step)) * step
                before += likely
                grown += slope
                step = steps[a, k, x]
                now += likely * step
                grows += (slope + likely * (1 - step)) * step
        before = max(before, LEAST)
        p = max(now / before, LEAST)
        slope, share = (grows - p * grown) / before, 1.0 if a < given else due[a]
        open_ = max(1 - share * p, LEAST)
        score += slope / p if a < given else -share * slope / open_
        information += share * slope * slope / (p * open_)
    return score, information


@compiled
def _observe(state: Array, alone: Array, usual: Array, steps: Array, level: int, given: int, due: Array) -> None:
    """``due``: float64[D + A], what share of each level would be there by now."""
    first, total = len(alone), 0.0
    for k in range(len(state)):
        for x in range(2):
            rest = (1 - steps[0, k, x]) / max(1 - usual[0, k, x], LEAST)
            if given > 0:
                found = 1.0
                for a in range(given):
                    found *= steps[a, k, x]
                if given < len(steps):
                    found *= 1 - due[first + given] * steps[given, k, x]
            elif level > 0:
                found = alone[level - 1, k, x] * rest
            else:
                found, answered = 1.0, 1.0
                for a in range(len(steps)):
                    answered *= steps[a, k, x]
                    deeper = 1 - steps[a + 1, k, x] if a + 1 < len(steps) else 1.0
                    found -= due[first + a] * answered * deeper
                for d in range(first):
                    found -= due[d] * alone[d, k, x] * rest
            state[k, x] *= max(found, LEAST)
            total += state[k, x]
    for k in range(len(state)):
        state[k, 0] /= total
        state[k, 1] /= total


@compiled
def _lean(mean: Array, spread: Array, family: int, score: float, information: float, column: Array) -> None:
    for f in range(len(mean)):
        column[f] = spread[family, f]
    scale = 1 / (1 + information * column[family])
    for f in range(len(mean)):
        gain = column[f] * scale
        mean[f] += gain * score
        for g in range(len(mean)):
            spread[f, g] -= gain * information * column[g]


@compiled
def _step(
    state: Array,
    mean: Array,
    spread: Array,
    moves: Array,
    alone: Array,
    usual: Array,
    share: Array,
    level: int,
    family: int,
    steps: Array,
    due: Array,
    column: Array,
) -> None:
    """The last three are room to work in, ``share``: float64[D + A]."""
    first = len(alone)
    _move(state, moves)
    _shifted(usual, mean[family] if family >= 0 else 0.0, steps)
    given = max(level - first, 0)
    if family >= 0:
        for a in range(len(steps)):
            due[a] = 1.0 if 0 < level <= first else share[first + a]
        score, information = _slopes(state, steps, given, due)
    _observe(state, alone, usual, steps, level, given, share)
    if family >= 0:
        _lean(mean, spread, family, score, information, column)


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
    of: Array,
    start: Array,
    moves: Array,
    alone: Array,
    usual: Array,
    delay: Array,
    alike: Array,
    seg: Array,
    at: Array,
    begin: Array,
    end: Array,
    family: Array,
) -> Array:
    answers, families = len(usual), len(alike)
    out = np.zeros((len(seg), 3 + answers))
    shares = np.ascontiguousarray(delay.T)
    settled, state = np.empty_like(start), np.empty_like(start)
    settled_mean, mean = np.empty(families), np.empty(families)
    settled_spread, spread = np.empty_like(alike), np.empty_like(alike)
    steps, due, column = np.empty_like(usual), np.empty(answers), np.empty(families)
    whole = shares[HORIZON // HOUR]
    current, row = np.int64(-1), np.int64(0)
    for i in range(len(seg)):
        first = starts[seg[i]]
        if seg[i] != current:
            current, row = seg[i], first
            settled[:], settled_mean[:], settled_spread[:] = start, 0.0, alike
        while row < begin[i]:
            until = ts[row] + HORIZON
            gap = _days(ts[row - 1], ts[row]) if row > first else 0
            level = _level(reached, row, until, until)
            moved, spot = moves[gap], of[row]
            _step(settled, settled_mean, settled_spread, moved, alone, usual, whole, level, spot, steps, due, column)
            row += 1
        state[:], mean[:], spread[:] = settled, settled_mean, settled_spread
        for young in range(begin[i], end[i]):
            gap = _days(ts[young - 1], ts[young]) if young > first else 0
            level = _level(reached, young, at[i], ts[young] + HORIZON)
            share = shares[(at[i] - ts[young]) // HOUR]
            _step(state, mean, spread, moves[gap], alone, usual, share, level, of[young], steps, due, column)
        _move(state, moves[_days(ts[end[i] - 1], at[i]) if end[i] > first else 0])
        leaning = mean[family[i]] if family[i] >= 0 else 0.0
        _shifted(usual, leaning, steps)
        for k in range(len(state)):
            out[i, 0] += state[k, 0]
            out[i, 1] += state[k, 0] * usual[0, k, 0]
            for x in range(2):
                weighed = state[k, x]
                for a in range(answers):
                    weighed *= steps[a, k, x]
                    out[i, 2 + a] += weighed
        out[i, 2 + answers] = leaning
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


def filtered(
    xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array, family: Array
) -> Array:
    """See :func:`filters.filtered`."""
    return cast(Array, _filtered(*exposures, *chain, seg, at, begin, end, family))


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
