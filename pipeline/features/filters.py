"""The forward filter of a mixture of two-state chains, as array functions: the reference that both backends run.

An *exposure* is one of a segment's, in order of time, and the chain moves between them by the whole days that lie
between. What came of it is a *level*, 0 nothing and upwards the deeper reactions; a level counts from the moment it was
reached, and within HORIZON of the exposure only. One that is younger than that may still be answered, so it weighs
differently at each point: it speaks as much as its age allows. See ``kernels.py`` for what array functions may do;
``compiled_filters.py`` holds the numba twin.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from pipeline.features.kernels import Array
from pipeline.options import UNITS

DAY, HOUR = UNITS["d"], UNITS["h"]
HOURS = 72  # an exposure's reactions are waited for
HORIZON = HOURS * HOUR  # microseconds
DAYS = 40  # between two exposures; more are taken for so many
_POINTS = 1 << 18  # at once, to bound the memory


class Exposures(NamedTuple):
    """``starts``: int64[S+1], each segment's first exposure; ``ts``: int64[m]; ``reached``: int64[R, m], when the
    exposure reached each level from 1 on, NEVER (``exposures.py``) where it did not."""

    starts: Array
    ts: Array
    reached: Array


class Chain(NamedTuple):
    """``start``: float64[K, 2], of each class and state (awake, asleep) before the first exposure; ``moves``:
    float64[DAYS + 1, K, 2, 2], from state to state in so many days; ``seen``: float64[R + 1, HOURS + 1, K, 2], how
    likely a level is after so many hours; ``value``: float64[F, K, 2], what is asked of the state."""

    start: Array
    moves: Array
    seen: Array
    value: Array


def filtered(xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array) -> Array:
    """The mean of each of the chain's values at each point, given the exposures before it: float64[q, F].

    Args:
        seg, at: int64[q], ascending by (seg, at). begin, end: int64[q], exposures: the first one of the segment that is
            not older than HORIZON, and the first one not before ``at``.
    """
    out = xp.zeros((len(seg), len(chain.value)), dtype=xp.float64)
    for first in range(0, len(seg), _POINTS):
        some = slice(first, first + _POINTS)
        state = _states(xp, exposures, chain, seg[some], at[some], begin[some], end[some])
        for f in range(len(chain.value)):
            out[some, f] = (state * chain.value[f]).reshape(len(state), -1).sum(axis=1)
    return out


def _states(xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array) -> Array:
    """The probability of each class and state: float64[q, K, 2]."""
    starts, ts = exposures.starts, exposures.ts
    low = int(seg[0])
    first = starts[low : int(seg[-1]) + 1]
    settled = begin - first[seg - low]
    # All segments take their t-th exposure at once, the longest first so that those still going are a slice.
    last = xp.flatnonzero(xp.concatenate([seg[1:] != seg[:-1], xp.ones(1, dtype=bool)]))
    number = xp.zeros(len(first), dtype=xp.int64)
    number[seg[last] - low] = settled[last]
    order = xp.argsort(-number, kind="stable")
    place = xp.zeros(len(first), dtype=xp.int64)
    place[order] = xp.arange(len(first), dtype=xp.int64)
    most = int(number.max())
    steps = xp.arange(most + 2, dtype=xp.int64)
    going = (len(first) - xp.searchsorted(number[order[::-1]], steps, side="right")).tolist()
    points = xp.argsort(settled, kind="stable")
    cuts = xp.searchsorted(settled[points], steps, side="left").tolist()
    held = xp.zeros((len(seg), *chain.start.shape), dtype=xp.float64)
    state = held[:0] if not len(first) else xp.zeros((len(first), *chain.start.shape), dtype=xp.float64) + chain.start
    for t, (a, b) in enumerate(itertools.pairwise(cuts)):
        mine = points[a:b]
        held[mine] = state[place[seg[mine] - low]]
        if t < most:
            active = order[: going[t]]
            rows = first[active] + t
            state[: going[t]] = _step(xp, exposures, chain, state[: going[t]], first[active], rows, ts[rows] + HORIZON)
    for young in range(int((end - begin).max())):
        mine = xp.flatnonzero(begin + young < end)
        held[mine] = _step(xp, exposures, chain, held[mine], first[seg[mine] - low], begin[mine] + young, at[mine])
    before = xp.maximum(end - 1, 0)
    gap = (
        xp.where(end > first[seg - low], days(xp, ts[before], at), 0) if len(ts) else xp.zeros(len(at), dtype=xp.int64)
    )
    return _moved(held, chain.moves[gap])


def _step(xp: Any, exposures: Exposures, chain: Chain, state: Array, first: Array, rows: Array, until: Array) -> Array:
    """The states after an exposure each, int64[n] ``rows``, given what came of it before ``until``."""
    ts = exposures.ts
    gap = xp.where(rows > first, days(xp, ts[xp.maximum(rows - 1, 0)], ts[rows]), 0)
    age = until - ts[rows]
    level = xp.zeros(len(rows), dtype=xp.int64)
    for r in range(len(exposures.reached)):
        when = exposures.reached[r][rows]
        level = xp.where((when < until) & (when < ts[rows] + HORIZON), r + 1, level)
    state = _moved(state, chain.moves[gap]) * chain.seen[level, age // HOUR]
    return state / state.reshape(len(rows), -1).sum(axis=1)[:, None, None]


def _moved(state: Array, moves: Array) -> Array:
    return state[:, :, 0, None] * moves[:, :, 0] + state[:, :, 1, None] * moves[:, :, 1]


def days(xp: Any, earlier: Array, later: Array) -> Array:
    """The whole days between two moments, the nearest number, at most DAYS: int64[n]."""
    return xp.minimum((later - earlier + DAY // 2) // DAY, DAYS)
