"""Rows and distinct subscribers per group, as array functions; ``groups_compiled.py`` has the numba twins.

A group is a cell of a coarser grid: rows are numbered once by their finest cell (:func:`cells`), and every coarser
grouping is a small map from cells to groups. Distinct subscribers are counted within *pieces*, runs of rows of one
subscriber, so that sorted files need no merging first (:func:`pieces`).
"""

from __future__ import annotations

from typing import Any

from pipeline.backend import Array

WIDEST = 2**63


def pieces(xp: Any, key: Array, ts: Array, starts: Array) -> tuple[Array, Array, Array, bool]:
    """Cut sorted runs into pieces of one subscriber each, those of a subscriber side by side.

    Args:
        key, ts: int64[n], runs one after the other, each sorted by ``(key, ts)``.
        starts: int64[r + 1], the runs' first rows and, last, n.
    Returns:
        ``first``, ``stop``: int64[p], each piece's rows; ``owner``: int64[p], ascending, the subscribers numbered from
        0; and whether rows of two runs share key and ts, so that one may be a duplicate of the other.
    """
    n = len(key)
    none = xp.empty(0, dtype="int64")
    if n == 0:
        return none, none, none, False
    begins = xp.ones(n, dtype="bool")
    run = xp.searchsorted(starts, xp.arange(n), side="right")
    begins[1:] = (key[1:] != key[:-1]) | (run[1:] != run[:-1])
    first = xp.flatnonzero(begins)
    stop = xp.concatenate([first[1:], xp.asarray([n], dtype="int64")])
    by = xp.argsort(key[first], kind="stable")
    first, stop = first[by], stop[by]
    change = xp.zeros(len(first), dtype="int64")
    change[1:] = key[first][1:] != key[first][:-1]
    owner = xp.cumsum(change)
    if len(starts) <= 2:
        return first, stop, owner, False
    order = xp.argsort(ts, kind="stable")
    order = order[xp.argsort(key[order], kind="stable")]
    run, k, t = run[order], key[order], ts[order]
    tied = (k[1:] == k[:-1]) & (t[1:] == t[:-1]) & (run[1:] != run[:-1])
    return first, stop, owner, bool(tied.any())


def factorize(xp: Any, code: Array) -> tuple[Array, Array]:
    """Number the distinct values.

    Args:
        code: int64[n], not negative.
    Returns:
        each row's number, int[n], and the distinct values, int64[g], in an order that is not specified.
    """
    if len(code) == 0:
        return xp.empty(0, dtype="int64"), xp.empty(0, dtype="int64")
    order = xp.argsort(code, kind="stable")
    ordered = code[order]
    change = xp.zeros(len(code), dtype="int64")
    change[1:] = ordered[1:] != ordered[:-1]
    begins = xp.concatenate([xp.zeros(1, dtype="int64"), xp.flatnonzero(change)])
    cell = xp.empty(len(code), dtype="int64")
    cell[order] = xp.cumsum(change)
    return cell, ordered[begins]


def cells(
    xp: Any, ts: Array, name: Array, since: Array, offsets: Array, unit: int, base: int, span: int
) -> tuple[Array, Array]:
    """Number the distinct (name, hour or day of the local clock).

    Args:
        ts: int64[n], microseconds UTC; name: int32[n], not negative.
        since, offsets: int64[z], the clock, see :func:`pipeline.features.calendar.clock`.
        unit: microseconds of an hour or a day; base, span: each local ``time // unit`` is in [base, base + span).
    Returns:
        as :func:`factorize`, of ``name * span + time // unit - base``.
    """
    if len(ts) == 0:
        return xp.empty(0, dtype="int64"), xp.empty(0, dtype="int64")
    at = xp.searchsorted(since, ts, side="right") - 1
    local = ts + offsets[xp.maximum(at, 0)]
    return factorize(xp, name.astype("int64") * span + (local // unit - base))


def count_distinct(
    xp: Any, first: Array, stop: Array, owner: Array, cell: Array, kind: Array, kinds: int, group: Array, groups: int
) -> Array:
    """Rows and distinct subscribers of each group and kind.

    Args:
        first, stop, owner: the pieces, which cover every row once (:func:`pieces`).
        cell, kind: int[n], each row's cell and its kind in [0, kinds).
        group: int64[cells], each cell's group in [0, groups), or -1 for a cell that is not counted.
    Returns:
        int[kinds, groups, 2]: rows, and distinct subscribers.
    Raises:
        OverflowError: groups x kinds x subscribers do not fit 63 bits.
    """
    subscribers = int(owner[-1]) + 1 if len(owner) else 0
    if groups * kinds * subscribers >= WIDEST:
        raise OverflowError("too many groups for one partition; read more partitions")
    size = groups * kinds
    if size == 0 or subscribers == 0:
        return xp.zeros((kinds, groups, 2), dtype="int64")
    by = xp.argsort(first, kind="stable")
    whose = xp.repeat(owner[by], (stop - first)[by])
    mine = group[cell]
    kept = xp.flatnonzero(mine >= 0)
    code = mine[kept] + kind[kept].astype("int64") * groups
    pair = xp.sort(code * subscribers + whose[kept])
    new = xp.ones(len(pair), dtype="bool")
    new[1:] = pair[1:] != pair[:-1]
    out = xp.zeros((size, 2), dtype="int64")
    out[:, 0] = xp.bincount(code, minlength=size)
    out[:, 1] = xp.bincount(pair[xp.flatnonzero(new)] // subscribers, minlength=size)
    return out.reshape(kinds, groups, 2)


def add(xp: Any, total: Array, rows: Array, kinds: Array, counted: Array) -> None:
    """Add some groups' counts to others'.

    Args:
        total: int64[kinds, groups, 2], added to.
        kinds: int64[k], rows: int64[g], where in it each kind and group of ``counted`` is; none is there twice.
        counted: int[k, g, 2].
    """
    total[kinds[:, None], rows] += counted
