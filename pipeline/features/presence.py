"""Whether somebody is there at all, and how keen then: a filter over what became of each earlier exposure.

Who lets five messages lie may be away, or may read one of ten as ever; counts over windows mix the two. Here everybody
belongs to one of a few classes, each with its own chances of what comes of an exposure (nothing, deleted unread, an
answer, a deeper answer), and is awake or asleep, a state that changes by the day. The probabilities of class and state
follow from the exposures before a decision (``filters.py``). The field knows the question as P(alive), of customers who
may have left for good: Fader, Hardie and Lee 2005, doi:10.1287/mksc.1040.0098; here one may come back.

Where families of campaigns are alike or not (``similarity.py``), the same filter learns which of them somebody leans
to, so that one who answers no news is not thought to be away, and the chances are those for the campaign decided about.

The classes are learned from everybody's past, before the validation begins, by expectation-maximisation (Baum et al.
1970), and kept with the specification, so that training and scoring mean the same by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import Array
from pipeline.features import similarity
from pipeline.features.exposures import NEVER, first_answers
from pipeline.features.filters import DAYS, HORIZON, HOUR, HOURS, LEAST, NO_FAMILY, Chain, Exposures, days
from pipeline.features.kernels import prefix_count
from pipeline.features.partition import Partition

DELETE = "delete"
CLASSES = 16
EXPOSURES = 300_000  # to learn from, of whole subscribers, are enough
ROUNDS = 30  # of expectation-maximisation; the likelihood has settled by then
_IMAGINED = 2.0  # exposures of each class and state, as it is before learning
_GRID = np.geomspace(0.0015, 0.15, 36)  # of the chances of falling asleep and of waking up in a day that are tried
_USUAL, _SPREAD = 0.012, 1.5  # and what is expected of them: the median, and the deviation of the logarithm
MOST = 1 - 1e-6  # of an answer's chance: nobody answers everything for sure
LEANING = 0.25  # logits: the deviation of leanings between subscribers, before anything is known


@dataclass(frozen=True)
class Presence:
    """Of K classes and R reactions, nested tuples of floats.

    ``start``: [K, 2], the share of each class and state (awake, asleep) at the first exposure; ``change``: [K, 2], the
    chance of falling asleep and of waking up in a day; ``levels``: [R, K, 2], the chance that an exposure gets just so
    far; ``delay``: [R, HOURS + 1], what share of these comes within so many hours.
    """

    start: tuple[tuple[float, ...], ...]
    change: tuple[tuple[float, ...], ...]
    levels: tuple[tuple[tuple[float, ...], ...], ...]
    delay: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Presence:
        return cls(**{name: _tuples(value) for name, value in values.items()})

    @classmethod
    def of(cls, *arrays: np.ndarray) -> Presence:
        """The fields, rounded to what matters of them."""
        digits = np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])
        return cls(*(_tuples(digits(a).tolist()) for a in arrays))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


# -- what came of exposures ----------------------------------------------------------------------------------------


def reactions(spec: Any) -> tuple[str, ...]:
    """The kinds of a FeatureSpec that something may come of an exposure as, the deepest last."""
    return (*((DELETE,) if DELETE in spec.kinds else ()), *spec.responses)


def exposed(part: Partition, spec: Any) -> tuple[Exposures, Array]:
    """A partition's exposures, and how many of them lie before each of its rows, int64[n+1].

    A deletion counts of what was not answered before it.
    """
    xp, kinds = part.xp, reactions(spec)
    mask = part.is_any(part.human, (spec.exposure,))
    rows, before = xp.flatnonzero(mask), prefix_count(xp, mask)
    when = list(first_answers(part, rows, kinds))
    for r in range(len(kinds) - 2, -1, -1):
        deleted = kinds[r] == DELETE
        # A deeper answer is one of the lower levels too: who clicks has opened, also where no open was seen.
        when[r] = xp.where(when[r] < when[r + 1], when[r], NEVER) if deleted else xp.minimum(when[r], when[r + 1])
    reached = xp.zeros((len(kinds), len(rows)), dtype=xp.int64)
    for r, times in enumerate(when):
        reached[r] = times
    family = families(part, spec, None if part.family is None else part.family[rows], len(rows))
    return Exposures(before[part.starts], part.ts[rows], reached, family), before


def families(part: Partition, spec: Any, family: Array | None, n: int) -> Array:
    """The rows of n families, codes of this partition, in the covariance of leanings: int64[n]."""
    if family is None or spec.similarity is None:
        return part.xp.zeros(n, dtype=part.xp.int64) + NO_FAMILY
    return similarity.positions(part, spec.similarity.names, family)


# -- the filter -----------------------------------------------------------------------------------------------------


def chain(xp: Any, spec: Any) -> Chain:
    """The filter of a FeatureSpec."""
    known = spec.presence or prior(spec)
    start, change, levels, delay = (np.array(a) for a in (known.start, known.change, known.levels, known.delay))
    alone = len(levels) - len(spec.responses)
    reach = np.cumsum(levels[alone:][::-1], axis=0)[::-1]  # each answer or a deeper one
    steps = reach / np.maximum(np.concatenate([np.ones_like(reach[:1]), reach[:-1]]), LEAST)
    steps = np.minimum(steps, MOST)  # levels are rounded, and may add up to more than 1
    return Chain(*(xp.asarray(a) for a in (start, _moves(change), levels[:alone], steps, delay, _alike(spec))))


def _alike(spec: Any) -> np.ndarray:
    """The covariance of leanings, float64[F, F]: that nearest to what the likeness of families says."""
    if spec.similarity is None:
        return np.zeros((0, 0))
    values, vectors = np.linalg.eigh(np.array(spec.similarity.weights, dtype=np.float64))
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    deviation = np.sqrt(np.diag(nearest))
    return np.asarray(LEANING**2 * nearest / np.outer(deviation, deviation))


def _moves(change: np.ndarray) -> np.ndarray:
    """float64[DAYS + 1, K, 2, 2] of float64[K, 2]."""
    both = change.sum(axis=1)
    stays = (1 - both) ** np.arange(DAYS + 1)[:, None]
    settled = np.stack([change[:, 1], change[:, 0]], axis=1) / both[:, None]  # awake, asleep
    moves = stays[:, :, None, None] * (np.eye(2) - settled[:, None]) + settled[:, None]
    return np.asarray(moves)


# -- learning ------------------------------------------------------------------------------------------------------


def prior(spec: Any) -> Presence:
    """What is taken for granted where there is nothing to learn from."""
    count = len(reactions(spec))
    return Presence.of(*_initial(np.full(count, 0.1), count - len(spec.responses)), np.ones((count, HOURS + 1)))


def _initial(share: np.ndarray, deletions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, change and levels of classes that differ in how much they answer only.

    Args:
        share: float64[R], of exposures that each level is the last of; the first ``deletions`` are no answers.
    """
    levels = np.empty((len(share), CLASSES, 2))
    levels[:, :, 1] = share[:, None] * np.where(np.arange(len(share)) < deletions, 0.3, 0.1)[:, None]
    depth = np.linspace(1.0, 1.5, len(share) - deletions)  # who answers more goes deeper, too
    answers = share[deletions:, None] * np.linspace(0.5, 4.5, CLASSES) ** depth[:, None]
    answers *= np.minimum(1, 0.9 / answers.sum(axis=0))
    levels[deletions:, :, 0] = answers
    levels[:deletions, :, 0] = share[:deletions, None] * (1 - answers.sum(axis=0))
    return np.full((CLASSES, 2), 0.5 / CLASSES), np.full((CLASSES, 2), _USUAL), levels


def learn(part: Partition, spec: Any, until: int) -> Presence:
    """The classes, from exposures that lie at least HORIZON before ``until``, microseconds UTC.

    On the CPU in any case, so that both backends learn the same.
    """
    from pipeline.features.compiled_filters import expectations

    found, _ = exposed(part, spec)
    starts, ts, reached, _ = (part.backend.to_host(a) for a in found)
    seg = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    old = np.flatnonzero(ts < until - HORIZON)
    old = old[: np.searchsorted(seg[old], seg[old[EXPOSURES - 1]])] if len(old) > EXPOSURES else old
    if not len(old):
        return prior(spec)
    ts, reached, seg = ts[old], reached[:, old], seg[old]
    level, age = np.zeros(len(ts), dtype=np.int64), reached - ts
    for r in range(len(reached)):
        level = np.where(age[r] < HORIZON, r + 1, level)
    starts = np.flatnonzero(np.concatenate([[True], seg[1:] != seg[:-1], [True]]))
    gap = days(np, np.concatenate([ts[:1], ts[:-1]]), ts)
    gap[starts[:-1]] = 0

    count = np.bincount(level, minlength=len(reached) + 1)
    share = (count[1:] + 1) / (len(level) + 10 * len(reached))
    start, change, levels = imagined = _initial(share, len(reached) - len(spec.responses))
    before = _IMAGINED * np.concatenate([1 - imagined[2].sum(axis=0)[None], imagined[2]])
    for _ in range(ROUNDS):
        seen = np.concatenate([1 - levels.sum(axis=0)[None], levels])
        began, moved, showed, _ = expectations(starts, gap, level, start, _moves(change), seen)
        start = (began + imagined[0]) / (began + imagined[0]).sum()
        levels = ((showed + before) / (showed + before).sum(axis=0))[1:]
        change = _changes(moved)
    return Presence.of(start, change, levels, _delays(age, level))


def _changes(moved: np.ndarray) -> np.ndarray:
    """The most likely chances of falling asleep and of waking up, float64[K, 2], of so many moves in so many days."""
    tried = np.stack([a.ravel() for a in np.meshgrid(_GRID, _GRID, indexing="ij")], axis=1)
    expected = -0.5 * ((np.log(tried / _USUAL) / _SPREAD) ** 2).sum(axis=1)
    fit = np.einsum("dgxz,dkxz->kg", np.log(np.maximum(_moves(tried), 1e-12)), moved, optimize=True)
    return np.asarray(tried[np.argmax(fit + expected, axis=1)])


def _delays(age: np.ndarray, level: np.ndarray) -> np.ndarray:
    """What share of those that stopped at each level had reached it within so many hours: float64[R, HOURS + 1]."""
    delay = np.ones((len(age), HOURS + 1))
    for r in range(len(age)):
        hours = age[r, level == r + 1] // HOUR + 1
        if len(hours):
            delay[r] = np.cumsum(np.bincount(hours, minlength=HOURS + 1)[: HOURS + 1]) / len(hours)
    return delay
