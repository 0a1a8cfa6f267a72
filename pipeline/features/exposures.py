"""Exposures and their answers: what became of each message, as far as a later moment could know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.kernels import attribute

NEVER = 1 << 62  # microseconds; after any event
NONE = -1  # no row
MOST = 5  # kinds of answers, so that every combination of them has a number below 64
_LIMIT = 1 << 62


def answering_rows(part: Any, rows: Array, kinds: Sequence[str]) -> list[Array]:
    """The row of the first answer of each kind to each exposure, int64[m] each; NONE where there is none.

    An answer belongs to the latest earlier exposure of its campaign to the same subscriber; where the log has no
    campaigns, to the subscriber's latest. Only people's events count.

    Args:
        part: a Partition. rows: int64[m], the exposures' rows, ascending.
    """
    xp, group, number = part.xp, _groups(part), len(kinds)
    known = xp.flatnonzero(group[rows] >= 0)
    found = xp.full(len(rows) * number, NONE, dtype=xp.int64)
    events = xp.flatnonzero(part.is_any(part.human, tuple(kinds)) & (group >= 0))
    which = xp.zeros(len(events), dtype=xp.int64)
    for k, kind in enumerate(kinds):
        which = xp.where(part.human[events] == part.code(kind), k, which)
    own = xp.full(len(events), -1, dtype=xp.int64)
    target = attribute(xp, group[rows[known]], part.ts[rows[known]], group[events], part.ts[events], own)
    there = xp.flatnonzero(target >= 0)
    place = known[target[there]] * number + which[there]
    order = xp.argsort(place, kind="stable")  # events are in order of time
    place, events = place[order], events[there[order]]
    if len(place):
        begins = xp.flatnonzero(xp.concatenate([xp.ones(1, dtype=bool), place[1:] != place[:-1]]))
        found[place[begins]] = events[begins]
    return [found[k::number] for k in range(number)]


def first_answers(part: Any, rows: Array, kinds: Sequence[str]) -> list[Array]:
    """When that was, int64[m] each, microseconds UTC; NEVER where there is none."""
    xp = part.xp
    if not part.rows:
        return [xp.zeros(0, dtype=xp.int64) for _ in kinds]
    found = answering_rows(part, rows, kinds)
    return [xp.where(first == NONE, NEVER, part.ts[xp.maximum(first, 0)]) for first in found]


def combined(xp: Any, first: Sequence[Array], exposures: Array, at: Array) -> Array:
    """Which kinds had answered by a moment, as one number: bit k for the k-th; int64 of the shape of ``exposures``.

    Args:
        first: see :func:`first_answers`. exposures: int64[q, L], indices into them; at: int64[q, 1].
    """
    bits = xp.zeros(exposures.shape, dtype=xp.int64)
    for k, when in enumerate(first):
        bits |= (when[exposures] < at).astype(xp.int64) << k
    return bits


def _groups(part: Any) -> Array:
    """What an answer and its exposure share, int64[n]: subscriber and campaign; -1 for a null campaign."""
    if part.campaign is None:
        return part.seg
    xp = part.xp
    campaigns = int(part.campaign.max()) + 1 if part.rows else 0
    if part.segments * max(campaigns, 1) >= _LIMIT:
        raise DataError(f"{part.segments} subscribers x {campaigns} campaigns exceed 62 bits; use more partitions")
    return xp.where(part.campaign >= 0, part.seg * max(campaigns, 1) + part.campaign, -1)
