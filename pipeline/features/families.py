"""How a subscriber has answered earlier campaigns of the family that is decided about: its name without numbers.

A campaign is often sent once, so nothing is known of it when it is decided about; of "spring-sale-260412" it is known
what the subscriber did with each earlier "spring-sale", and with families that are like it (``similarity.py``). An
event belongs to the family of its own campaign. Where no campaign is known, as in a tenth of the training rows (those
whose campaign has no context either), nothing speaks for or against it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.backend import Array
from pipeline.features import similarity
from pipeline.features.blocks import Block, Rows, Subset
from pipeline.features.partition import Partition
from pipeline.features.sequences import family
from pipeline.features.similarity import Similarity
from pipeline.features.spec import SMOOTH_HITS, SMOOTH_TRIALS, Feature
from pipeline.features.trailing import UNKNOWN

Count = Callable[[Block, int, "int | None"], Array]
WEIGHT = 16.0  # expected answers' worth of no affinity that one is smoothed with


def decided(part: Partition, row: Array | None, campaign: str | None, hidden: Array) -> Array:
    """The family that each point decides about, int64[q]: a code of this partition, or UNKNOWN.

    Args:
        row: int64[q], the points' own rows; None where they are no events, and then ``campaign`` is that of all.
        hidden: bool[q], the points whose campaign is taken as unknown.
    """
    xp, codes = part.xp, similarity.families_of(part)
    if row is not None:
        return xp.where(hidden, UNKNOWN, codes[row]).astype(xp.int64)
    name = "" if campaign is None else family(campaign)
    code = part.families.index(name) if name in part.families else UNKNOWN
    return xp.full(len(hidden), code, dtype=xp.int64)


def match(block: Block, feature: Feature) -> Array:
    """Exposures of the family, the usual rate of answers, or how far beyond it the family and its like are answered."""
    if feature.how == "count":
        return _of_family(block, 0, feature.window)
    if feature.how == "rate":
        return _rate(block, *_role(block, feature.kind or ""), feature.window)
    return _affinity(block, feature.kind or "", feature.window)


def _affinity(block: Block, kind: str, window: int | None) -> Array:
    """Answers beyond those that the subscriber's own rate expects, over those expected, smoothed towards 0: float64[q].

    The estimate of one effect from several families: least squares on the likenesses, shrunk (ridge regression).
    """
    alike, (mine, base) = block.spec.similarity, _role(block, kind)
    rate = _rate(block, mine, base, window)
    expected = rate * _delivered(block, _of_family, base, window)
    beyond = _of_family(block, mine, window) - expected
    if alike is not None:
        found, weights = _tallies(block, alike, window), _weights(block, alike)
        for k in range(len(alike.names)):
            usual, weight = rate * found[:, base, k], weights[:, k]
            beyond = beyond + weight * (found[:, mine, k] - usual)
            expected = expected + weight * weight * usual
    return beyond / (expected + WEIGHT)


def _rate(block: Block, mine: int, base: int, window: int | None) -> Array:
    """The subscriber's own rate, of all families, smoothed: float64[q]."""
    return (_all(block, mine, window) + SMOOTH_HITS) / (_delivered(block, _all, base, window) + SMOOTH_TRIALS)


def _role(block: Block, kind: str) -> tuple[int, int]:
    """The roles of a kind of answers and of what they are over."""
    kinds, before = similarity.answers(block.spec), similarity.over(kind, block.spec.responses)
    return kinds.index(kind) + 1, 0 if before is None else kinds.index(before) + 1


# -- counts of one role, see similarity.roles ----------------------------------------------------------------------


def _all(block: Block, role: int, window: int | None) -> Array:
    """Rows of a role in a window, of any family: int64[q]."""
    subset, _ = block.rows.keep(("role", role), lambda: _of_role(block.rows, role))
    begin, end = block.window(subset, window)
    return end - begin


def _of_family(block: Block, role: int, window: int | None) -> Array:
    """The same of each point's own family."""
    xp = block.xp

    def make() -> Array:
        if block.family is None:
            return xp.zeros(len(block.seg), dtype=xp.int64)
        subset, codes = block.rows.keep(("role", role), lambda: _of_role(block.rows, role))
        begin, end = block.window(subset, window)
        number, wanted = max(len(block.part.families), 1), xp.maximum(block.family, 0)
        found = block.part.backend.aggregates.window_code_counts(xp, codes, number, begin, end, wanted)
        return xp.where(block.family == UNKNOWN, 0, found)

    return block.keep(("role", role, window), make)


def _delivered(block: Block, count: Count, role: int, window: int | None) -> Array:
    """Either of these, exposures less their bounces."""
    found = count(block, role, window)
    if role or not block.spec.bounces:
        return found
    return block.xp.maximum(found - count(block, len(similarity.answers(block.spec)) + 1, window), 0)


def _of_role(rows: Rows, role: int) -> tuple[Subset, Array]:
    subset = Subset(rows.part, _roles(rows) == role)
    return subset, similarity.families_of(rows.part)[subset.rows]


def _roles(rows: Rows) -> Array:
    return rows.keep("roles", lambda: similarity.roles(rows.part, rows.spec))


# -- families that are alike ---------------------------------------------------------------------------------------


def _tallies(block: Block, alike: Similarity, window: int | None) -> Array:
    """See :func:`similarity.tallies`."""
    part, spec, names = block.part, block.spec, alike.names
    column, width = block.rows.keep("columns", lambda: similarity.columns(part, spec, names, _roles(block.rows)))
    reach = similarity.EVER if window is None else window

    def make() -> Array:
        return similarity.tallies(part, column, width, len(names), block.seg, block.at, reach)

    return block.keep(("tallies", window), make)


def _weights(block: Block, alike: Similarity) -> Array:
    """How like the point's family the others are, float64[q, K]; 0 for itself, and where that is not known."""
    xp = block.xp

    def make() -> Array:
        if block.family is None:
            return xp.zeros((len(block.seg), len(alike.names)))
        table = np.array([*alike.weights, [0.0] * len(alike.names)])
        np.fill_diagonal(table, 0.0)
        place = similarity.positions(block.part, alike.names, block.family)
        return xp.asarray(table)[xp.where(place == UNKNOWN, len(alike.names), place)]

    return block.keep("likeness", make)
