"""What was known when: features of a decision point from the events that had arrived by then, and no others.

An event that arrives late is history today and was not on the day. Asked to (``as_known_at: decision``), a point at
``at`` sees the events with ``ts < at`` that were ingested at or before ``at``; so a training set made today equals, row
for row, what scoring saw on each of those days. An event a few seconds old is treated like any other.

Almost every point knows all of its past, and is computed as always. The few that do not are found by two searches for
each event, and computed once more on copies of their subscribers' rows without the unknown ones: no kernel has to know.
What has arrived only grows, so the points of a subscriber between two arrivals share one copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.kernels import segment_ids, segment_starts
from pipeline.features.partition import Partition

BLOCK = 1 << 22  # rows copied at a time


def unknown(part: Partition, seg: Array, at: Array) -> Array:
    """How many events of its own past each point had not heard of yet: int64[q].

    Args:
        seg, at: int64[q], ascending by (seg, at).
    """
    xp = part.xp
    if len(seg) == 0:
        return xp.zeros(0, dtype=xp.int64)
    arrived = _arrivals(part)
    starts = segment_starts(xp, seg)
    distinct = seg[starts[:-1]]
    rows = xp.flatnonzero(arrived > part.ts + 1)  # no instant lies between the others and their arrival
    place = xp.minimum(xp.searchsorted(distinct, part.seg[rows]), len(distinct) - 1)
    asked = xp.flatnonzero(distinct[place] == part.seg[rows])
    rows, place = rows[asked], place[asked]
    search = part.backend.kernels.lower_bounds
    first = search(xp, starts, at, place, part.ts[rows] + 1)
    stop = search(xp, starts, at, place, arrived[rows])
    missed = xp.flatnonzero(stop > first)
    begun, ended = (xp.bincount(edge[missed], minlength=len(seg) + 1) for edge in (first, stop))
    return xp.cumsum(begun - ended)[:-1]


def corrections(part: Partition, seg: Array, at: Array) -> Iterator[tuple[Array, Partition, Array]]:
    """The points that did not know all of their past, and that past as they knew it.

    Args:
        seg, at: int64[q], ascending by (seg, at).
    Yields:
        positions of points, int64[m], ascending; a partition to compute them on; their segments in it, int64[m].
    """
    xp = part.xp
    late = xp.flatnonzero(unknown(part, seg, at) > 0)
    if len(late) == 0:
        return
    seg, at = seg[late], at[late]
    group = _same_knowledge(part, seg, at)
    heads = segment_starts(xp, group)
    first, last = heads[:-1], heads[1:] - 1
    begin, known, until = part.starts[seg[first]], at[first], at[last]
    size = part.positions(seg[first], until) - begin
    total = xp.cumsum(size + 1)
    block = (total - 1) // BLOCK
    cuts = [0, *(xp.flatnonzero(block[1:] != block[:-1]) + 1).tolist(), len(size)]
    for a, b in itertools.pairwise(cuts):
        points = slice(int(heads[a]), int(heads[b]))
        groups = slice(a, b)
        past = _copy(part, begin[groups], size[groups], known[groups], until[groups])
        yield late[points], past, group[points] - a


def _arrivals(part: Partition) -> Array:
    if part.ingested is None:
        raise DataError("as_known_at: decision needs the column ingested_at, which this read leaves out")
    return part.ingested


def _same_knowledge(part: Partition, seg: Array, at: Array) -> Array:
    """Points of one segment between two arrivals, as groups numbered 0, 1, ...: int64[q], ascending."""
    xp = part.xp
    heads = segment_starts(xp, seg)
    distinct = seg[heads[:-1]]
    concerned = xp.zeros(part.segments, dtype=bool)
    concerned[distinct] = True
    rows = xp.flatnonzero(concerned[part.seg])
    rows = rows[xp.argsort(_arrivals(part)[rows], kind="stable")]
    rows = rows[xp.argsort(part.seg[rows], kind="stable")]
    starts, place = segment_starts(xp, part.seg[rows]), segment_ids(xp, heads, len(seg))
    arrived = part.backend.kernels.lower_bounds(xp, starts, _arrivals(part)[rows], place, at + 1)
    new = xp.zeros(len(seg), dtype=xp.int64)
    new[1:] = (place[1:] != place[:-1]) | (arrived[1:] != arrived[:-1])
    return xp.cumsum(new)


def _copy(part: Partition, begin: Array, size: Array, known: Array, until: Array) -> Partition:
    """A segment for each of g runs of rows, of those rows that had arrived by ``known``.

    Each ends with a row at ``until`` that no point sees, so that none is empty.
    """
    xp = part.xp
    stop = xp.cumsum(size + 1)
    group = xp.repeat(xp.arange(len(size), dtype=xp.int64), size + 1)
    step = xp.arange(len(group), dtype=xp.int64) - (stop - size - 1)[group]
    end = step == size[group]
    rows = begin[group] + xp.where(end, 0, step)
    kept = xp.flatnonzero(end | (_arrivals(part)[rows] <= known[group]))
    rows, group, end = rows[kept], group[kept], end[kept]
    past = part.take(rows, group)
    past.ts = xp.where(end, until[group], past.ts)
    past.kind = xp.where(end, -1, past.kind)
    past.tell_humans()  # by what was known then
    return past
