"""Array functions on sorted segments: the reference that both backends run.

A *segment* is one subscriber's events, consecutive rows in the store's total order; ``starts`` (int64[S+1]) holds each
segment's first row and, last, the number of rows. A *point* is a segment and an instant. Half-open everywhere: a
point at ``at`` sees rows with ``ts < at``.

Written for ``xp`` = numpy or cupy alike, so: every gather is in bounds (CuPy would wrap), nothing is scattered to a
duplicate index (CuPy leaves it undefined), ``add`` is the only cumulative function. Everything that crosses rows is an
integer, so results do not depend on partitions or on the device. ``pipeline/features/compiled.py`` holds numba twins.
"""

from __future__ import annotations

import itertools
from typing import Any

from pipeline.errors import DataError

Array = Any  # numpy.ndarray or cupy.ndarray

PACKED_LIMIT = 1 << 62  # packed keys stay below this; one bit of 63 is left for sums of two


def segments(xp: Any, key: Array, ts: Array) -> tuple[Array, Array, bool]:
    """Segment starts int64[S+1], the segment of each row int64[n], and whether rows ascend by (key, ts).

    Args:
        key: int64[n], equal keys adjacent; ts: int64[n].
    """
    starts = segment_starts(xp, key)
    same = key[1:] == key[:-1]
    ordered = bool(xp.all((key[1:] > key[:-1]) | (same & (ts[1:] >= ts[:-1]))))
    return starts, segment_ids(xp, starts, len(key)), ordered


def segment_starts(xp: Any, key: Array) -> Array:
    """First row of each run of equal keys, and the number of rows: int64[S+1].

    Args:
        key: int64[n], equal keys adjacent.
    """
    n = len(key)
    if n == 0:
        return xp.zeros(1, dtype=xp.int64)
    change = xp.flatnonzero(key[1:] != key[:-1]) + 1
    ends = xp.asarray([n], dtype=xp.int64)
    return xp.concatenate([xp.zeros(1, dtype=xp.int64), change.astype(xp.int64), ends])


def segment_ids(xp: Any, starts: Array, n: int) -> Array:
    """The segment of each of ``n`` rows: int64[n]."""
    mark = xp.zeros(n, dtype=xp.int64)
    mark[starts[1:-1]] = 1
    return xp.cumsum(mark)


def prefix_count(xp: Any, mask: Array) -> Array:
    """How many of the rows before each position are in ``mask``: int64[n+1]."""
    out = xp.zeros(len(mask) + 1, dtype=xp.int64)
    out[1:] = xp.cumsum(mask, dtype=xp.int64)
    return out


def lower_bounds(xp: Any, starts: Array, ts: Array, seg: Array, at: Array) -> Array:
    """The first row of its segment that is not before each point: int64[q], in ``[starts[seg], starts[seg+1]]``.

    One ``searchsorted`` over (segment, time) packed into one integer. A segment takes only as many integers as its own
    span has microseconds, and points are clipped to it, so one stray date widens its own segment alone; where all
    segments together exceed 62 bits the work goes block by block.

    Args:
        starts: int64[S+1]; ts: int64[n], microseconds, ascending within a segment.
        seg: int64[q], at: int64[q], microseconds; any order.
    Raises:
        DataError: one segment alone spans 2^62 microseconds or more (146,000 years).
    """
    count = len(starts) - 1
    if count == 0 or len(seg) == 0:
        return xp.zeros(len(seg), dtype=xp.int64)
    first, last = ts[starts[:-1]], ts[starts[1:] - 1]
    widths = last.astype(xp.float64) - first + 1  # floats, since the integers may be what overflows
    if float(widths.max()) >= PACKED_LIMIT:
        raise DataError(
            f"one subscriber's events span {float(widths.max()):.3g} microseconds, where less than 2^62 was expected; "
            "impossible times should have been rejected at ingest"
        )
    if float(widths.sum()) < PACKED_LIMIT * 0.999:
        return _search_packed(xp, starts, ts, seg, at, first, last)
    out = xp.zeros(len(seg), dtype=xp.int64)
    block = xp.floor(xp.cumsum(widths) / (PACKED_LIMIT / 2)).astype(xp.int64)
    cuts = [0, *(xp.flatnonzero(block[1:] != block[:-1]) + 1).tolist(), count]
    for a, b in itertools.pairwise(cuts):
        here = xp.flatnonzero((seg >= a) & (seg < b))
        row, end = int(starts[a]), int(starts[b])
        found = _search_packed(xp, starts[a : b + 1] - row, ts[row:end], seg[here] - a, at[here], first[a:b], last[a:b])
        out[here] = found + row
    return out


def _search_packed(xp: Any, starts: Array, ts: Array, seg: Array, at: Array, first: Array, last: Array) -> Array:
    width = last - first + 1
    base = xp.zeros(len(width) + 1, dtype=xp.int64)
    base[1:] = xp.cumsum(width)
    shift = base[:-1] - first
    rows = ts + shift[segment_ids(xp, starts, len(ts))]
    # Clipped to the segment, so that neither the subtraction nor the sum can overflow.
    clipped = xp.minimum(xp.maximum(at, first[seg]), last[seg] + 1)
    return xp.searchsorted(rows, clipped + shift[seg], side="left").astype(xp.int64)


def window_counts(
    xp: Any, starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, windows: list[int], out: Array
) -> None:
    """Events of each kind in ``[at - window, at)``, for each point, into ``out``.

    Args:
        codes: int[n], the kind of each row; counted are 0 .. kinds-1, any other is ignored.
        seg, at: int64[q], ascending by (seg, at): the compiled twin moves along.
        windows: microseconds.
        out: [q, at least len(windows) * kinds], any numeric dtype; window w and kind k go to column
            ``w * kinds + k``, other columns are left alone.
    Source: a difference of two cumulative counts, see DESIGN, "The one idea".
    """
    end = lower_bounds(xp, starts, ts, seg, at)
    begin = [lower_bounds(xp, starts, ts, seg, at - window) for window in windows]
    for k in range(kinds):
        before = prefix_count(xp, codes == k)
        until = before[end]
        for w, position in enumerate(begin):
            out[:, w * kinds + k] = until - before[position]


def last_before(xp: Any, starts: Array, mask: Array, seg: Array, end: Array) -> Array:
    """The last row in ``mask`` among ``[starts[seg], end)``: int64[q], -1 where there is none.

    Args:
        mask: bool[n]; end: int64[q], a position as ``lower_bounds`` gives it.
    """
    rows = xp.flatnonzero(mask)
    if len(rows) == 0 or len(seg) == 0:
        return xp.full(len(seg), -1, dtype=xp.int64)
    before = prefix_count(xp, mask)
    count = before[end]
    found = count > before[starts[seg]]
    return xp.where(found, rows[xp.maximum(count - 1, 0)], -1)


def last_times(xp: Any, starts: Array, ts: Array, codes: Array, kinds: int, seg: Array, at: Array, never: int) -> Array:
    """The time of the latest event of each kind before each point: int64[q, kinds]; ``never`` where there is none.

    Arguments as for :func:`window_counts`.
    """
    out = xp.full((len(seg), kinds), never, dtype=xp.int64)
    if len(seg) == 0:
        return out
    end = lower_bounds(xp, starts, ts, seg, at)
    for k in range(kinds):
        last = last_before(xp, starts, codes == k, seg, end)
        out[:, k] = xp.where(last >= 0, ts[xp.maximum(last, 0)], never)
    return out


def ignored_streak(xp: Any, starts: Array, ts: Array, exposed: Array, responded: Array, seg: Array, at: Array) -> Array:
    """Exposures before each point and after the instant of the latest response before it: int64[q].

    An exposure at the very instant of the response counts as answered by it, so the order of equal times is no matter.

    Args:
        exposed, responded: bool[n].
    """
    if len(seg) == 0:
        return xp.zeros(0, dtype=xp.int64)
    end = lower_bounds(xp, starts, ts, seg, at)
    last = last_before(xp, starts, responded, seg, end)
    after = lower_bounds(xp, starts, ts, seg, ts[xp.maximum(last, 0)] + 1)
    exposures = prefix_count(xp, exposed)
    return exposures[end] - exposures[xp.where(last >= 0, after, starts[seg])]


def attribute(xp: Any, exposure_group: Array, exposure_ts: Array, group: Array, ts: Array, own: Array) -> Array:
    """The latest exposure of its group at or before each event, other than the event itself: int64[e], -1 for none.

    Args:
        exposure_group: int64[m]; exposure_ts: int64[m], ascending within a group; equal times in total order.
        group: int64[e]; ts: int64[e]; own: int64[e], the event's own index among the exposures, -1 if it is none.
    """
    if len(exposure_group) == 0 or len(group) == 0:
        return xp.full(len(group), -1, dtype=xp.int64)
    order = xp.argsort(exposure_group, kind="stable")
    sorted_group = exposure_group[order]
    starts = segment_starts(xp, sorted_group)
    distinct = sorted_group[starts[:-1]]
    seg = xp.minimum(xp.searchsorted(distinct, group), len(distinct) - 1)
    position = lower_bounds(xp, starts, exposure_ts[order], seg, ts + 1) - 1
    itself = (position >= 0) & (order[xp.maximum(position, 0)] == own)
    position = position - itself
    found = (distinct[seg] == group) & (position >= starts[seg])
    return xp.where(found, order[xp.maximum(position, 0)], -1)


def sum_at(xp: Any, target: Array, values: Array, size: int) -> Array:
    """``out[i]`` = sum of the values whose target is i: int64[size], exact.

    Args:
        target: int64[e] in 0 .. size-1, any order, repeats allowed; values: int64[e].
    """
    order = xp.argsort(target, kind="stable")
    total = xp.zeros(len(values) + 1, dtype=xp.int64)
    total[1:] = xp.cumsum(values[order])
    bounds = xp.searchsorted(target[order], xp.arange(size + 1, dtype=xp.int64), side="left")
    return total[bounds[1:]] - total[bounds[:-1]]


def hash64(xp: Any, salt: int, *parts: Array) -> Array:
    """A well-mixed uint64[n] of integer columns, the same on every device.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), once per column.
    """
    mixed = xp.full(len(parts[0]), salt, dtype=xp.uint64)
    for part in parts:
        mixed = (mixed ^ part.astype(xp.int64).view(xp.uint64)) + xp.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> xp.uint64(31))
    return mixed


def hashed_share(xp: Any, share: float, salt: int, *parts: Array) -> Array:
    """bool[n]: true for about ``share`` of the distinct values of the columns, always the same ones."""
    uniform = (hash64(xp, salt, *parts) >> xp.uint64(11)).astype(xp.float64) * 2.0**-53
    return uniform < share
