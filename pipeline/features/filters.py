"""The forward filter of who is there and what they like, as array functions: the reference that both backends run.

An *exposure* is one of a segment's, in order of time. Two things are followed from one to the next:

- the probability of each class and state, a mixture of two-state chains that move by the whole days between exposures;
- *leanings*: by how much, in logits, each answer to an exposure of a family is likelier than class and state say.
  Gaussian, zero as long as nothing is known, with the covariance that says how alike families are.

What came of an exposure is a *level*, 0 nothing and upwards the deeper reactions; a level counts from the moment it was
reached, and within HORIZON of the exposure only. Each answer is a step that is taken or not, given the one before: its
chance in every class and state, shifted by the leaning, tells how likely the classes are now, and its score, averaged
over them, how the leanings change: one Newton step, as in Fahrmeir 1992, doi:10.1080/01621459.1992.10475232. What a
level that is no answer says is left to classes and states. A step that is not taken yet speaks as much as the
exposure's age allows, so it weighs differently at each point. See ``kernels.py`` for what array functions may do;
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
NO_FAMILY = -1
LEAST = 1e-9  # of what is divided by
_POINTS = 1 << 17  # at once, to bound the memory


class Exposures(NamedTuple):
    """``starts``: int64[S+1], each segment's first exposure; ``ts``: int64[m]; ``reached``: int64[R, m], when the
    exposure reached each level from 1 on, NEVER (``exposures.py``) where it did not; ``family``: int64[m], a row of
    ``Chain.alike``, or NO_FAMILY."""

    starts: Array
    ts: Array
    reached: Array
    family: Array


class Chain(NamedTuple):
    """``start``: float64[K, 2], of each class and state (awake, asleep) before the first exposure; ``moves``:
    float64[DAYS + 1, K, 2, 2], from state to state in so many days; ``alone``: float64[D, K, 2], the chance of each
    level that is no answer; ``steps``: float64[A, K, 2], the chance of each answer given the one before; ``delay``:
    float64[D + A, HOURS + 1], what share of each level comes within so many hours; ``alike``: float64[F, F], the
    covariance of leanings, squared logits."""

    start: Array
    moves: Array
    alone: Array
    steps: Array
    delay: Array
    alike: Array


class Belief(NamedTuple):
    """Of n segments: ``state``, float64[n, K, 2], probabilities; ``mean``, float64[n, F], and ``spread``, float64[n, F,
    F], of the leanings."""

    state: Array
    mean: Array
    spread: Array

    def of(self, rows: Any) -> Belief:
        return Belief(self.state[rows], self.mean[rows], self.spread[rows])

    def put(self, rows: Any, other: Belief) -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine[rows] = theirs


def filtered(
    xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array, family: Array
) -> Array:
    """What is thought at each point, given the exposures before it: float64[q, 3 + A].

    The probability of being awake; that of being awake and answering, whatever the family; that of each answer to an
    exposure of ``family``; and the leaning towards that.

    Args:
        seg, at: int64[q], ascending by (seg, at). begin, end: int64[q], exposures: the first one of the segment that is
            not older than HORIZON, and the first one not before ``at``. family: int64[q], or NO_FAMILY.
    """
    answers = len(chain.steps)
    out = xp.zeros((len(seg), 3 + answers), dtype=xp.float64)
    for first in range(0, len(seg), _POINTS):
        some = slice(first, first + _POINTS)
        belief = _beliefs(xp, exposures, chain, seg[some], at[some], begin[some], end[some])
        leaning = _leaning(xp, belief.mean, family[some])
        out[some, 0] = belief.state[:, :, 0].sum(axis=1)
        out[some, 1] = (belief.state[:, :, 0] * chain.steps[0, :, 0]).sum(axis=1)
        weighed = belief.state
        for a, step in enumerate(_shifted(xp, chain, leaning)):
            weighed = weighed * step
            out[some, 2 + a] = weighed.reshape(len(weighed), -1).sum(axis=1)
        out[some, 2 + answers] = leaning
    return out


def _beliefs(xp: Any, exposures: Exposures, chain: Chain, seg: Array, at: Array, begin: Array, end: Array) -> Belief:
    """What is thought of the subscriber at each point, whatever is decided about."""
    starts, ts = exposures.starts, exposures.ts
    # Of the segments that have points: which each point's is, its first exposure, and how many its last point needs.
    last = xp.concatenate([seg[1:] != seg[:-1], xp.ones(1, dtype=bool)])
    mine = xp.cumsum(last) - last
    last = xp.flatnonzero(last)
    first = starts[seg[last]]
    settled = begin - first[mine]
    number = settled[last]
    # All segments take their t-th exposure at once, the longest first so that those still going are a slice.
    order = xp.argsort(-number, kind="stable")
    place = xp.zeros(len(first), dtype=xp.int64)
    place[order] = xp.arange(len(first), dtype=xp.int64)
    most = int(number.max())
    steps = xp.arange(most + 2, dtype=xp.int64)
    going = (len(first) - xp.searchsorted(number[order[::-1]], steps, side="right")).tolist()
    points = xp.argsort(settled, kind="stable")
    cuts = xp.searchsorted(settled[points], steps, side="left").tolist()
    held, now = _before(xp, chain, len(seg)), _before(xp, chain, len(first))
    for t, (a, b) in enumerate(itertools.pairwise(cuts)):
        held.put(points[a:b], now.of(place[mine[points[a:b]]]))
        if t < most:
            some, active = slice(0, going[t]), order[: going[t]]
            rows = first[active] + t
            now.put(some, _step(xp, exposures, chain, now.of(some), first[active], rows, ts[rows] + HORIZON))
    for young in range(int((end - begin).max())):
        some = xp.flatnonzero(begin + young < end)
        held.put(some, _step(xp, exposures, chain, held.of(some), first[mine[some]], begin[some] + young, at[some]))
    before = xp.maximum(end - 1, 0)
    gap = xp.where(end > first[mine], days(xp, ts[before], at), 0) if len(ts) else xp.zeros(len(at), dtype=xp.int64)
    return held._replace(state=_moved(held.state, chain.moves[gap]))


def _before(xp: Any, chain: Chain, n: int) -> Belief:
    """What is thought of n subscribers before their first exposure."""
    families = len(chain.alike)
    return Belief(
        xp.zeros((n, *chain.start.shape), dtype=xp.float64) + chain.start,
        xp.zeros((n, families), dtype=xp.float64),
        xp.zeros((n, families, families), dtype=xp.float64) + chain.alike,
    )


def _step(
    xp: Any, exposures: Exposures, chain: Chain, belief: Belief, first: Array, rows: Array, until: Array
) -> Belief:
    """What is thought after an exposure each, int64[n] ``rows``, given what came of it before ``until``."""
    ts, alone = exposures.ts, len(chain.alone)
    gap = xp.where(rows > first, days(xp, ts[xp.maximum(rows - 1, 0)], ts[rows]), 0)
    age = (until - ts[rows]) // HOUR
    level = xp.zeros(len(rows), dtype=xp.int64)
    for r in range(len(exposures.reached)):
        when = exposures.reached[r][rows]
        level = xp.where((when < until) & (when < ts[rows] + HORIZON), r + 1, level)
    state, family = _moved(belief.state, chain.moves[gap]), exposures.family[rows]
    steps = _shifted(xp, chain, _leaning(xp, belief.mean, family))

    # Of each answer: whether it was given, and what share of those to be given would be there by now.
    given = [level > alone + a for a in range(len(steps))]
    due = [xp.where((level > 0) & (level <= alone), 1.0, chain.delay[alone + a][age]) for a in range(len(steps))]
    now = state * _likelihood(xp, chain, steps, level, age, given, due)
    now = now / now.reshape(len(rows), -1).sum(axis=1)[:, None, None]
    if not len(chain.alike):
        return belief._replace(state=now)
    return Belief(now, *_leant(xp, belief, family, *_slopes(xp, state, steps, given, due)))


def _likelihood(
    xp: Any, chain: Chain, steps: list[Array], level: Array, age: Array, given: list[Array], due: list[Array]
) -> Array:
    """How likely what came of each exposure was in each class and state: float64[n, K, 2]."""
    alone, rest = len(chain.alone), (1 - steps[0]) / xp.maximum(1 - chain.steps[0], LEAST)
    nothing = 1.0
    answered = 1.0
    for a, step in enumerate(steps):
        deeper = 1 - steps[a + 1] if a + 1 < len(steps) else 1.0
        answered = answered * step
        nothing = nothing - chain.delay[alone + a][age][:, None, None] * answered * deeper
    for d in range(alone):
        nothing = nothing - chain.delay[d][age][:, None, None] * chain.alone[d] * rest
    found = nothing
    for d in range(alone):
        found = xp.where((level == d + 1)[:, None, None], chain.alone[d] * rest, found)
    reached = 1.0
    for a, step in enumerate(steps):
        reached = reached * step
        deeper = 1 - due[a + 1][:, None, None] * steps[a + 1] if a + 1 < len(steps) else 1.0
        found = xp.where(given[a][:, None, None], reached * deeper, found)
    return xp.maximum(found, LEAST)


def _slopes(xp: Any, state: Array, steps: list[Array], given: list[Array], due: list[Array]) -> tuple[Array, Array]:
    """The derivative of the log likelihood of the answers by the leaning, and its information: float64[n] each."""
    n = len(state)
    score, information = xp.zeros(n, dtype=xp.float64), xp.zeros(n, dtype=xp.float64)
    # Of what came so far, in every class and state: how likely it was, and the derivative of that.
    likely, grows, asked = state, xp.zeros(state.shape, dtype=xp.float64), xp.ones(n, dtype=bool)
    for step, yes, share in zip(steps, given, due, strict=True):
        before, grown = likely.reshape(n, -1).sum(axis=1), grows.reshape(n, -1).sum(axis=1)
        before = xp.maximum(before, LEAST)
        likely, grows = likely * step, (grows + likely * (1 - step)) * step
        p = xp.maximum(likely.reshape(n, -1).sum(axis=1) / before, LEAST)
        slope = (grows.reshape(n, -1).sum(axis=1) - p * grown) / before
        share = xp.where(yes, 1.0, share)
        open_ = xp.maximum(1 - share * p, LEAST)
        score = score + xp.where(asked, xp.where(yes, slope / p, -share * slope / open_), 0.0)
        information = information + xp.where(asked, share * slope * slope / (p * open_), 0.0)
        asked = asked & yes
    return score, information


def _leant(xp: Any, belief: Belief, family: Array, score: Array, information: Array) -> tuple[Array, Array]:
    """Mean and spread of the leanings after an exposure of ``family`` with this score and information."""
    n = xp.arange(len(family))
    column = belief.spread[n, xp.maximum(family, 0)]
    column = xp.where((family == NO_FAMILY)[:, None], 0.0, column)
    own = column[n, xp.maximum(family, 0)]
    gain = column / (1 + information * own)[:, None]
    mean = belief.mean + gain * score[:, None]
    return mean, belief.spread - (gain * information[:, None])[:, :, None] * column[:, None, :]


def _leaning(xp: Any, mean: Array, family: Array) -> Array:
    """The mean of the leaning towards each one's family, float64[n]; 0 where there is none."""
    if not mean.shape[1]:
        return xp.zeros(len(family), dtype=xp.float64)
    return xp.where(family == NO_FAMILY, 0.0, mean[xp.arange(len(family)), xp.maximum(family, 0)])


def _shifted(xp: Any, chain: Chain, leaning: Array) -> list[Array]:
    """The chance of each answer given the one before, float64[n, K, 2] each, with odds by the leaning."""
    odds = xp.exp(leaning)[:, None, None]
    return [step * odds / (1 - step + step * odds) for step in chain.steps]


def _moved(state: Array, moves: Array) -> Array:
    return state[:, :, 0, None] * moves[:, :, 0] + state[:, :, 1, None] * moves[:, :, 1]


def days(xp: Any, earlier: Array, later: Array) -> Array:
    """The whole days between two moments, the nearest number, at most DAYS: int64[n]."""
    return xp.minimum((later - earlier + DAY // 2) // DAY, DAYS)
