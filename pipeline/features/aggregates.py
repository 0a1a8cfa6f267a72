"""Array functions on windows of positions: the reference that both backends run.

A *window* is ``[begin, end)``, two positions among rows in the store's order, int64[q] each. Windows are those of
decision points ascending by (segment, at), so both bounds ascend from one to the next, across subscribers too; only
the compiled twins, in ``compiled_aggregates.py``, rely on that. Written as ``kernels.py`` is, see there.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import DataError
from pipeline.features.kernels import PACKED_LIMIT, Array, lower_bounds, prefix_count


def window_positions(xp: Any, starts: Array, ts: Array, seg: Array, at: Array, windows: list[int]) -> list[Array]:
    """The first row of its segment at or after ``at - window``, for each window: int64[q] each.

    Args:
        starts, ts, seg, at: as for :func:`kernels.window_counts`; windows: microseconds, 0 for ``at`` itself.
    """
    return [lower_bounds(xp, starts, ts, seg, at - window) for window in windows]


def prefix_sum(xp: Any, values: Array) -> Array:
    """The sum of the values before each position: int64[n+1].

    The sum of ``[b, e)`` is ``out[e] - out[b]``: exact, also where the prefix wraps around 64 bits, as long as the
    window's own sum does not.
    """
    out = xp.zeros(len(values) + 1, dtype=xp.int64)
    out[1:] = xp.cumsum(values, dtype=xp.int64)
    return out


def pick(xp: Any, values: Array, index: Array, valid: Array, empty: int = 0) -> Array:
    """``values[index]`` where ``valid``, ``empty`` elsewhere: int64[q]; the index may be anything where not valid."""
    if len(values) == 0:
        return xp.full(len(index), empty, dtype=xp.int64)
    return xp.where(valid, values[xp.where(valid, index, 0)], empty)


def window_max(xp: Any, values: Array, begin: Array, end: Array, empty: int = 0) -> Array:
    """The greatest of ``values[begin:end]``: int64[q]; ``empty`` where the window is.

    Args:
        values: int64[n].
    Source: sparse table (Bender and Farach-Colton 2000), one level of it in memory at a time.
    """
    out = xp.full(len(begin), empty, dtype=xp.int64)
    length = end - begin
    longest = int(length.max()) if len(length) else 0
    level, width = values, 1
    while width <= longest:
        mine = xp.flatnonzero((length >= width) & (length < 2 * width))
        out[mine] = xp.maximum(level[begin[mine]], level[end[mine] - width])
        if 2 * width > longest:
            break
        level = xp.maximum(level[:-width], level[width:])  # level[i]: the greatest of values[i : i + 2 * width]
        width *= 2
    return out


def window_distinct(xp: Any, codes: Array, number: int, begin: Array, end: Array) -> Array:
    """How many different codes ``codes[begin:end]`` holds: int64[q].

    Args:
        codes: int[n] in 0 .. number-1.
    Source: a row counts where the previous row of its code lies before ``begin``; rows below a threshold within a range
    are counted by a wavelet matrix (Claude, Navarro and Ordonez 2015), a bit a pass.
    """
    n = len(codes)
    if n == 0 or len(begin) == 0:
        return xp.zeros(len(begin), dtype=xp.int64)
    order = xp.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    after = xp.zeros(n, dtype=xp.int64)  # one past the previous row of the same code, 0 where there is none
    after[order[1:]] = xp.where(same, order[:-1] + 1, 0)
    low, high, threshold = begin, end, begin + 1  # after <= begin
    found = xp.zeros(len(begin), dtype=xp.int64)
    for bit in range(n.bit_length(), -1, -1):  # a threshold is at most n + 1
        ones = (after >> bit) & 1 > 0
        before = prefix_count(xp, ~ones)
        zeros = int(before[n])
        low0, high0 = before[low], before[high]
        up = (threshold >> bit) & 1 > 0
        found = found + xp.where(up, high0 - low0, 0)
        low = xp.where(up, low - low0 + zeros, low0)
        high = xp.where(up, high - high0 + zeros, high0)
        after = xp.concatenate([after[xp.flatnonzero(~ones)], after[xp.flatnonzero(ones)]])
    return found


def window_code_counts(xp: Any, codes: Array, number: int, begin: Array, end: Array, wanted: Array) -> Array:
    """How many of ``codes[begin:end]`` are the code that each window asks for: int64[q].

    Args:
        codes: int[n] in 0 .. number-1; wanted: int[q], as well.
    Raises:
        DataError: number times rows exceeds 62 bits.
    """
    n = len(codes)
    if n == 0 or len(begin) == 0:
        return xp.zeros(len(begin), dtype=xp.int64)
    if number * (n + 1) >= PACKED_LIMIT:
        raise DataError(f"{number} codes x {n} rows exceed 62 bits; use more partitions")
    # (code, row) packed: rows of one code are neighbours, in their order.
    packed = xp.sort(codes.astype(xp.int64) * (n + 1) + xp.arange(n, dtype=xp.int64))
    base = wanted.astype(xp.int64) * (n + 1)
    upto = xp.searchsorted(packed, base + end, side="left")
    return (upto - xp.searchsorted(packed, base + begin, side="left")).astype(xp.int64)


def run_lengths(xp: Any, first: Array, member: Array) -> Array:
    """The length of the run of members that ends at each row, within its segment: int64[n], 0 at rows that are none.

    Args:
        first: bool[n], the first row of each segment; member: bool[n].
    """
    n = len(member)
    opens = xp.zeros(n, dtype=bool)
    opens[1:] = ~member[:-1]
    opens = member & (opens | first)
    begins = xp.flatnonzero(opens)
    if len(begins) == 0:
        return xp.zeros(n, dtype=xp.int64)
    run = xp.cumsum(opens, dtype=xp.int64) - 1
    return xp.where(member, xp.arange(n, dtype=xp.int64) - begins[xp.maximum(run, 0)] + 1, 0)


def run_ends(xp: Any, member: Array) -> Array:
    """The first row at or after each position that is no member, whatever its segment: int64[n+1]."""
    n = len(member)
    others = xp.concatenate([xp.flatnonzero(~member), xp.asarray([n], dtype=xp.int64)]).astype(xp.int64)
    return others[prefix_count(xp, ~member)]


def longest_runs(xp: Any, lengths: Array, ends: Array, begin: Array, end: Array) -> Array:
    """The longest run of members within ``[begin, end)``, cut off at both: int64[q].

    Args:
        lengths, ends: of :func:`run_lengths` and :func:`run_ends`; begin, end: each within one segment.
    """
    stop = xp.minimum(ends[begin], end)  # of the run that the window may begin amidst
    return xp.maximum(stop - begin, window_max(xp, lengths, stop, end))
