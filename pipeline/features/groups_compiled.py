"""Numba twins of ``groups.py``, for the CPU: the same arguments, the same answers, one pass over the rows.

Each releases the GIL, so partitions run side by side in threads, and is cached on disk. Large arrays are NumPy's, which
asks for huge pages: numba's take a fault for every 4 KB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np

from pipeline.features.compiled import compiled
from pipeline.options import UNITS

__all__ = ["add", "cells", "count_distinct", "factorize", "pieces", "warm_up"]

Array = np.ndarray[Any, Any]
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hashing


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], numba.njit(nogil=True, cache=True, inline="always")(function))


@_inlined
def _end(key: Array, row: Any, stop: Any) -> Any:
    """The first row after ``row`` of another key, at most ``stop``; by doubling steps, then halving ones."""
    step = 1
    while row + step < stop and key[row + step] == key[row]:
        row += step
        step *= 2
    while step > 1:
        step //= 2
        if row + step < stop and key[row + step] == key[row]:
            row += step
    return row + 1


@compiled
def _pieces(key: Array, ts: Array, starts: Array) -> tuple[Array, Array, Array, bool]:
    runs = len(starts) - 1
    number = 0
    for r in range(runs):
        at = starts[r]
        while at < starts[r + 1]:
            at = _end(key, at, starts[r + 1])
            number += 1
    first, stop, owner = np.empty(number, np.int64), np.empty(number, np.int64), np.empty(number, np.int64)
    head = starts[:-1].copy()
    tied = False
    who, j = -1, 0
    while j < number:
        low, found = np.int64(0), False
        for r in range(runs):
            if head[r] < starts[r + 1] and (not found or key[head[r]] < low):
                low, found = key[head[r]], True
        who += 1
        begin = j
        for r in range(runs):
            at = head[r]
            if at >= starts[r + 1] or key[at] != low:
                continue
            end = _end(key, at, starts[r + 1])
            first[j], stop[j], owner[j] = at, end, who
            for q in range(begin, j):  # two runs' rows tie only where their times overlap
                if tied or ts[first[q]] > ts[end - 1] or ts[at] > ts[stop[q] - 1]:
                    continue
                a, b = first[q], at
                while a < stop[q] and b < end and ts[a] != ts[b]:
                    if ts[a] < ts[b]:
                        a += 1
                    else:
                        b += 1
                tied = a < stop[q] and b < end
            j += 1
            head[r] = end
    return first, stop, owner, tied


@_inlined
def _slot(code: Any, shift: Any) -> Any:
    return np.int64((np.uint64(code) * _MIX) >> shift)


@compiled
def _table(keys: Array, used: int) -> tuple[Array, Any]:
    """An open-addressed table of the keys' numbers, half full at most, and how far to shift a hash for a slot of it."""
    bits = 1
    while (1 << bits) < 2 * len(keys):
        bits += 1
    shift, last = np.uint64(64 - bits), (1 << bits) - 1
    table = np.full(1 << bits, -1, np.int32)
    for number in range(used):
        at = _slot(keys[number], shift)
        while table[at] >= 0:
            at = (at + 1) & last
        table[at] = number
    return table, shift


FAR = 2**62
_HOUR, _DAY = UNITS["h"], UNITS["d"]


@_inlined
def _quotient(time: Any, unit: int) -> Any:
    # By a constant, a division is a multiplication.
    if unit == _HOUR:
        return time // _HOUR
    if unit == _DAY:
        return time // _DAY
    return time if unit == 1 else time // unit


@compiled
def _cells(
    ts: Array,
    name: Array,
    names: int,
    since: Array,
    offsets: Array,
    unit: int,
    base: int,
    span: int,
    cell: Array,
    slots: Array,
) -> Array:
    # Where ``names`` is not 0, every possible cell has a slot of its own, and needs no hash: those of one time side by
    # side, since the names in use differ little from one hour to the next.
    n = len(ts)
    room, used = 1024, 0
    keys = np.empty(room, np.int64)
    table, shift = _table(keys, 0)
    zone, zones = 0, len(since)
    begin, end, offset = -FAR, since[1] if zones > 1 else FAR, offsets[0]
    for i in range(n):
        now = ts[i]
        if now < begin or now >= end:
            zone = max(np.searchsorted(since, now, side="right") - 1, 0)
            begin = since[zone] if zone else -FAR
            end = since[zone + 1] if zone + 1 < zones else FAR
            offset = offsets[zone]
        bucket = _quotient(now + offset, unit) - base
        if names:
            cell[i] = bucket * names + name[i]
            slots[cell[i]] = 1
            continue
        code = np.int64(name[i]) * span + bucket
        at = _slot(code, shift)
        while True:
            number = table[at]
            if number < 0:
                if used == room:
                    wider = np.empty(2 * room, np.int64)
                    wider[:room] = keys
                    keys, room = wider, 2 * room
                    table, shift = _table(keys, used)
                    at = _slot(code, shift)
                    while table[at] >= 0:
                        at = (at + 1) & (len(table) - 1)
                number = used
                table[at] = used
                keys[used] = code
                used += 1
                break
            if keys[number] == code:
                break
            at = (at + 1) & (len(table) - 1)
        cell[i] = number
    if not names:
        return keys[:used].copy()
    found = np.flatnonzero(slots)
    for number in range(len(found)):
        slots[found[number]] = number
    for i in range(n):
        cell[i] = slots[cell[i]]
    return found % names * span + found // names


@compiled
def _count_distinct(
    first: Array, stop: Array, owner: Array, cell: Array, kind: Array, group: Array, seen: Array
) -> None:
    for j in range(len(first)):
        who = owner[j] + 1
        for i in range(first[j], stop[j]):
            g = group[cell[i]]
            if g >= 0:
                k = kind[i]
                seen[k, g, 0] += 1
                if seen[k, g, 2] != who:
                    seen[k, g, 2] = who
                    seen[k, g, 1] += 1


@compiled
def _add(total: Array, rows: Array, kinds: Array, counted: Array) -> None:
    for k in range(len(kinds)):
        for i in range(len(rows)):
            total[kinds[k], rows[i], 0] += counted[k, i, 0]
            total[kinds[k], rows[i], 1] += counted[k, i, 1]


_NO_CLOCK = np.zeros(1, dtype=np.int64)


def pieces(xp: Any, key: Array, ts: Array, starts: Array) -> tuple[Array, Array, Array, bool]:
    """See :func:`groups.pieces`; the runs' heads move side by side."""
    first, stop, owner, tied = _pieces(key, ts, np.asarray(starts, dtype=np.int64))
    return first, stop, owner, bool(tied)


def factorize(xp: Any, code: Array) -> tuple[Array, Array]:
    """See :func:`groups.factorize`; a hash table, in the order of first appearance."""
    code = np.ascontiguousarray(code, dtype=np.int64)
    return cells(xp, code, np.zeros(len(code), np.int32), _NO_CLOCK, _NO_CLOCK, 1, 0, 0)


def cells(
    xp: Any, ts: Array, name: Array, since: Array, offsets: Array, unit: int, base: int, span: int
) -> tuple[Array, Array]:
    """See :func:`groups.cells`; a table of all possible cells where they are not more than the rows."""
    names = int(name.max(initial=0)) + 1
    dense = names if 0 < names * span <= len(ts) else 0
    cell, slots = np.empty(len(ts), np.int32), np.zeros(dense * span, np.int32)
    return cell, cast(Array, _cells(ts, name, dense, since, offsets, unit, base, span, cell, slots))


def count_distinct(
    xp: Any, first: Array, stop: Array, owner: Array, cell: Array, kind: Array, kinds: int, group: Array, groups: int
) -> Array:
    """See :func:`groups.count_distinct`; a group remembers the subscriber that it saw last."""
    small = group.astype(np.int32)  # it is looked at in any order: half of it is more often in the cache
    # Rows, distinct subscribers and the last one seen lie side by side, and a kind's groups, many of which have no
    # other: what is in use fills as few lines of the cache as can be.
    seen = np.zeros((kinds, groups, 3), np.int32)
    _count_distinct(first, stop, owner, cell, kind, small, seen)
    return seen[:, :, :2]


def add(xp: Any, total: Array, rows: Array, kinds: Array, counted: Array) -> None:
    """See :func:`groups.add`."""
    _add(total, rows, kinds, counted)


def warm_up() -> float:
    """Compile, or load from the cache, every twin for the types in use; seconds it took."""
    began = time.perf_counter()
    key, kind = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int32)
    first, stop, owner, _ = pieces(np, key, key, np.array([0, 2]))
    cell, keys = cells(np, key, kind, _NO_CLOCK, _NO_CLOCK, 1, 0, 1)
    counted = count_distinct(np, first, stop, owner, cell, kind, 1, np.zeros(len(keys), np.int64), 1)
    total = np.zeros((1, 1, 2), dtype=np.int64)
    for one in (counted, total):  # of a partition, and of several that were merged before
        add(np, total, key[:1], key[:1], one)
    return time.perf_counter() - began
